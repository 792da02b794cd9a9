"""Numbered system checks: settings that would leave a door open stop the start."""

from typing import Any

from django.conf import settings
from django.core import checks

UNSAFE_PREFIX = "django-insecure-"


def register() -> None:
    checks.register(check_secret_key, "accounts")
    checks.register(check_key_model, "accounts")


def check_secret_key(**_kwargs: Any) -> list[checks.CheckMessage]:
    key = settings.SECRET_KEY
    if len(key) >= 50 and not key.startswith(UNSAFE_PREFIX):
        return []
    hint = "Set SECRET_KEY in .env to at least 50 random characters; `make run` does it for you."
    return [checks.Error("SECRET_KEY is missing or too short.", hint=hint, id="accounts.E001")]


def check_key_model(**_kwargs: Any) -> list[checks.CheckMessage]:
    if settings.KNOX_TOKEN_MODEL == "accounts.ApiKey":
        return []
    return [checks.Error("KNOX_TOKEN_MODEL must be 'accounts.ApiKey'.", id="accounts.E002")]
