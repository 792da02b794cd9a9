"""System checks: unsafe settings stop the start."""

from typing import Any

from django.conf import settings
from django.core import checks

# Placeholders from documents, which everybody can read.
PUBLIC = ("django-insecure-", "random characters", "make run", "change-me", "changeme")
# Random hexadecimal digits, 16 different ones, are a good secret.
LENGTH, VARIETY = 50, 10


def register() -> None:
    checks.register(check_secret_key, "accounts")
    checks.register(check_key_model, "accounts")
    checks.register(check_hosts, "accounts")
    # DEBUG is allowed with `manage.py runserver`, but not on the server that customers call.
    checks.register(check_debug, "accounts", deploy=True)


def check_secret_key(**_kwargs: Any) -> list[checks.CheckMessage]:
    key = settings.SECRET_KEY
    is_public = any(placeholder in key.lower() for placeholder in PUBLIC)
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
    """The gateway's pages contain its host name, so a client must not choose it."""
    if settings.ALLOWED_HOSTS and "*" not in settings.ALLOWED_HOSTS:
        return []
    hint = "Set ALLOWED_HOSTS in .env, for example ALLOWED_HOSTS=llm.example.com"
    message = "ALLOWED_HOSTS is empty or '*'. It must list the host names."
    return [checks.Error(message, hint=hint, id="accounts.E003")]


def check_debug(**_kwargs: Any) -> list[checks.CheckMessage]:
    if not settings.DEBUG:
        return []
    hint = "Set DEBUG=off in .env; to develop with it on, use `manage.py runserver`."
    return [
        checks.Error(
            "DEBUG must be off on a server that customers call.", hint=hint, id="accounts.E004"
        )
    ]
