"""Numbered system checks: settings that would leave a door open stop the start."""

from typing import Any

from django.conf import settings
from django.core import checks

# What documents show in the place of a secret, and everybody can read.
PUBLIC = ("django-insecure-", "random characters", "make run", "change-me", "changeme")
# Random hexadecimal digits, 16 different ones, are a good secret.
LENGTH, VARIETY = 50, 10


def register() -> None:
    checks.register(check_secret_key, "accounts")
    checks.register(check_key_model, "accounts")
    checks.register(check_hosts, "accounts")
    # Whoever develops with `manage.py runserver` may; the server that customers call may not.
    checks.register(check_debug, "accounts", deploy=True)


def check_secret_key(**_kwargs: Any) -> list[checks.CheckMessage]:
    key = settings.SECRET_KEY
    is_public = any(words in key.lower() for words in PUBLIC)
    if len(key) >= LENGTH and len(set(key)) >= VARIETY and not is_public:
        return []
    hint = (
        "Set SECRET_KEY in .env to at least 50 random characters, as this prints them: "
        "python3 -c 'import secrets; print(secrets.token_urlsafe(50))'"
    )
    message = "SECRET_KEY is missing, too short, or an example that everybody can read."
    return [checks.Error(message, hint=hint, id="accounts.E001")]


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
