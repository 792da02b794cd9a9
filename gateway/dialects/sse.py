"""Write server-sent events. Pure."""

from typing import Any

from gateway.dialects.json_fragments import dump

# A comment, which clients skip.
KEEPALIVE = b": keep-alive\n\n"


def event(value: dict[str, Any], name: str = "") -> bytes:
    """Return one event. JSON is written in ASCII here, so no line break hides in a text."""
    field = b"event: %b\n" % name.encode() if name else b""
    return b"%bdata: %b\n\n" % (field, dump(value, separators=(",", ":")))
