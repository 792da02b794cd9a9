"""Numbered system checks: settings of the gateway that cannot work stop the start."""

from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

from django.conf import settings
from django.core import checks

POSITIVE = (
    "UPSTREAM_CONNECT_SECONDS",
    "UPSTREAM_FIRST_LINE_SECONDS",
    "UPSTREAM_SILENCE_SECONDS",
    "UPSTREAM_TOTAL_SECONDS",
    "KEEP_ALIVE_SECONDS",
    "MAX_BODY_BYTES",
    "MAX_PROMPT_BYTES",
    "MAX_IMAGES",
    "MAX_IMAGE_BYTES",
    "MAX_EMBED_INPUTS",
    "DEFAULT_COMPLETION_TOKENS",
    "MAX_COMPLETION_TOKENS",
)


def register() -> None:
    checks.register(check_upstream, "gateway")
    checks.register(check_limits, "gateway")


def check_upstream(**_kwargs: Any) -> list[checks.CheckMessage]:
    """OLLAMA_BASE is scheme, host, port and perhaps a path in front of `/api`."""
    problem = _upstream_problem(settings.OLLAMA_BASE)
    if problem is None:
        return []
    hint = "Set OLLAMA_BASE in .env, for example OLLAMA_BASE=http://127.0.0.1:11434"
    return [checks.Error(f"OLLAMA_BASE {problem}.", hint=hint, id="gateway.E001")]


def _upstream_problem(address: str) -> str | None:
    try:
        parts = urlsplit(address)
        _port = parts.port
    except ValueError:
        return "is not an address"
    if parts.scheme not in ("http", "https") or not parts.hostname:
        return "must start with http:// or https:// and name a host"
    if parts.username or parts.query or parts.fragment:
        return "must not hold a user, a query or a fragment"
    return None


def check_limits(**_kwargs: Any) -> list[checks.CheckMessage]:
    return list(_limit_errors())


def _limit_errors() -> Iterator[checks.CheckMessage]:
    for name in POSITIVE:
        if getattr(settings, name) <= 0:
            yield checks.Error(f"{name} must be greater than zero.", id="gateway.E002")
    if settings.DEFAULT_COMPLETION_TOKENS > settings.MAX_COMPLETION_TOKENS:
        message = "DEFAULT_COMPLETION_TOKENS must not exceed MAX_COMPLETION_TOKENS."
        yield checks.Error(message, id="gateway.E003")
