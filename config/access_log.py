"""gunicorn's access log, whose lines no client can write."""

import re
from typing import Any

from gunicorn.glogging import Logger

UNPRINTABLE = re.compile(r"[^!#-~]")


class Log(Logger):  # type: ignore[misc]  # gunicorn has no types
    def atoms(self, resp: Any, req: Any, environ: Any, request_time: Any) -> dict[str, Any]:
        """Give the address as it was asked for: decoded, `%0a` would begin a line of its own."""
        found: dict[str, Any] = super().atoms(resp, req, environ, request_time)
        return found | {"U": escaped(getattr(req, "path", None) or "-")}


def escaped(text: str) -> str:
    """Return a text in one printable word, quotes and control characters as percent signs."""
    return UNPRINTABLE.sub(lambda found: f"%{ord(found[0]):02X}", text)
