"""Numbered system checks: settings that would leave a door open stop the start."""

from typing import Any

from django.conf import settings
from django.core import checks

UNSAFE_PREFIX = "django-insecure-"
LENGTH, VARIETY = 50, 5


def register() -> None:
    checks.register(check_secret_key, "accounts")
    checks.register(check_key_model, "accounts")
    checks.register(check_hosts, "accounts")
    # Whoever develops with `manage.py runserver` may; the server that customers call may not.
    checks.register(check_debug, "accounts", deploy=True)


def check_secret_key(**_kwargs: Any) -> list[checks.CheckMessage]:
    key = settings.SECRET_KEY
    if len(key) >= LENGTH and len(set(key)) >= VARIETY and not key.startswith(UNSAFE_PREFIX):
        return []
    hint = "Set SECRET_KEY in .env to at least 50 random characters; `make run` does it for you."
    return [checks.Error("SECRET_KEY is missing or too short.", hint=hint, id="accounts.E001")]


def check_key_model(**_kwargs: Any) -> list[checks.CheckMessage]:
    if settings.KNOX_TOKEN_MODEL == "accounts.ApiKey":
        return []
    return [checks.Error("KNOX_TOKEN_MODEL must be 'accounts.ApiKey'.", id="accounts.E002")]


def check_hosts(**_kwargs: Any) -> list[checks.CheckMessage]:
    """Whoever may choose the name that the gateway is called by, writes into its pages."""
    if settings.ALLOWED_HOSTS and "*" not in settings.ALLOWED_HOSTS:
        return []
    hint = "Set ALLOWED_HOSTS in .env, for example ALLOWED_HOSTS=llm.example.com"
    message = "ALLOWED_HOSTS must name the hosts, and not be '*' or empty."
    return [checks.Error(message, hint=hint, id="accounts.E003")]


def check_debug(**_kwargs: Any) -> list[checks.CheckMessage]:
    if not settings.DEBUG:
        return []
    hint = "Set DEBUG=off in .env; to develop with it on, use `manage.py runserver`."
    return [checks.Error("DEBUG must be off where customers call.", hint=hint, id="accounts.E004")]
