"""Numbered system checks: settings of the gateway that cannot work stop the start."""

import contextlib
import ipaddress
import re
import socket
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

from django.conf import settings
from django.core import checks

from gateway.http import origins

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

HOST = re.compile(r"[a-z0-9._-]+|[0-9a-f:.]+")
# Where clouds keep the secrets of a machine, besides the link-local 169.254.169.254.
METADATA = {"fd00:ec2::254", "100.100.100.200"}

POSITIVE = (
    "INVENTORY_SECONDS",
    "UPSTREAM_CONNECT_SECONDS",
    "UPSTREAM_FIRST_LINE_SECONDS",
    "UPSTREAM_SILENCE_SECONDS",
    "UPSTREAM_TOTAL_SECONDS",
    "KEEP_ALIVE_SECONDS",
    "STUCK_MODEL_SECONDS",
    "MAX_BODY_BYTES",
    "MAX_JSON_VALUES",
    "MAX_PROMPT_BYTES",
    "MAX_IMAGES",
    "MAX_IMAGE_BYTES",
    "MAX_EMBED_INPUTS",
    "EMBED_BATCH_INPUTS",
    "DEFAULT_COMPLETION_TOKENS",
    "MAX_COMPLETION_TOKENS",
    "MAX_SCHEMA_BYTES",
    "MAX_SCHEMA_DEPTH",
    "MAX_SCHEMA_ENUM_VALUES",
    "MAX_SCHEMA_BRANCHES",
    "MAX_SCHEMA_OPTIONAL_PROPERTIES",
    "MAX_SCHEMA_EMPTY_REPETITIONS",
)
# The model is to be stopped within a second after the client has left.
MOST_GRACE_MS = 750


def register() -> None:
    checks.register(check_upstream, "gateway")
    checks.register(check_limits, "gateway")
    checks.register(check_origins, "gateway")
    checks.register(check_isolation, "gateway", deploy=True)


def check_origins(**_kwargs: Any) -> list[checks.CheckMessage]:
    """Each of ALLOWED_ORIGINS is a scheme and a host, perhaps with a port, and nothing else."""
    hint = "Write it as a browser does: https://chat.example.com"
    return [
        checks.Error(f"ALLOWED_ORIGINS: '{each}' is not an origin.", hint=hint, id="gateway.E005")
        for each in settings.ALLOWED_ORIGINS
        if not origins.is_origin(each)
    ]


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
    if not address.isprintable() or " " in address:
        return "must not hold blanks"
    if parts.scheme not in ("http", "https") or not parts.hostname:
        return "must start with http:// or https:// and name a host"
    if "@" in parts.netloc or parts.query or parts.fragment:
        return "must not hold a user, a query or a fragment"
    if not HOST.fullmatch(parts.hostname):
        return "must name its host in plain letters"
    at = literal(parts.hostname)
    return (
        None if at is None or is_private_address(at) else f"must not be {at}, which is not private"
    )


def literal(host: str) -> Address | None:
    """Return the address that a host is, in any spelling a resolver takes; None for a name."""
    with contextlib.suppress(OSError):
        # Knows decimal, octal and hexadecimal numbers, too, and asks nobody.
        return ipaddress.IPv4Address(socket.inet_aton(host.rstrip(".")))
    with contextlib.suppress(ValueError):
        address = ipaddress.IPv6Address(host)
        return address.ipv4_mapped or address
    return None


def is_private_address(at: Address) -> bool:
    """Tell whether an address is in your own network, and no cloud's metadata service."""
    if at.is_loopback:
        return True
    odd = at.is_unspecified or at.is_link_local or at.is_multicast or at.is_reserved
    return not (at.is_global or odd or str(at) in METADATA)


def check_limits(**_kwargs: Any) -> list[checks.CheckMessage]:
    return list(_limit_errors())


def _limit_errors() -> Iterator[checks.CheckMessage]:
    for name in POSITIVE:
        if getattr(settings, name) <= 0:
            yield checks.Error(f"{name} must be greater than zero.", id="gateway.E002")
    if settings.DEFAULT_COMPLETION_TOKENS > settings.MAX_COMPLETION_TOKENS:
        message = "DEFAULT_COMPLETION_TOKENS must not exceed MAX_COMPLETION_TOKENS."
        yield checks.Error(message, id="gateway.E003")
    if not 0 <= settings.DISCONNECT_GRACE_MS <= MOST_GRACE_MS:
        message = f"DISCONNECT_GRACE_MS must be from 0 to {MOST_GRACE_MS}."
        yield checks.Error(message, id="gateway.E004")


def check_isolation(**_kwargs: Any) -> list[checks.CheckMessage]:
    """Whether customers may learn from each other is a decision; no default can take it."""
    if settings.ISOLATE_PROMPTS is not None:
        return []
    message = "ISOLATE_PROMPTS is not set, so prompts are isolated."
    hint = (
        "Set it to `on` where accounts do not trust each other: a model server answers a prompt "
        "that it has read before much faster, and by that one account can find out what another "
        "asked. Set it to `off` where they do: it costs some tokens a request and changes the "
        "wording of answers a little. See docs/privacy.md."
    )
    return [checks.Warning(message, hint=hint, id="gateway.W001")]
