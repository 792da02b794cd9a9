"""gunicorn's access log. A client cannot forge a line of it."""

import re
from typing import Any

from gunicorn.glogging import Logger

UNPRINTABLE = re.compile(r"[^!#-~]")


class Log(Logger):  # type: ignore[misc]  # gunicorn has no types
    def atoms(self, resp: Any, req: Any, environ: Any, request_time: Any) -> dict[str, Any]:
        """Return the path as it was sent: decoded, `%0a` would begin a new line."""
        atoms: dict[str, Any] = super().atoms(resp, req, environ, request_time)
        return atoms | {"U": escaped(getattr(req, "path", None) or "-")}


def escaped(text: str) -> str:
    """Return a text as one printable word, with quotes and control characters percent-encoded."""
    return UNPRINTABLE.sub(lambda match: f"%{ord(match[0]):02X}", text)
