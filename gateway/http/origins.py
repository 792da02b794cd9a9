"""Which web pages may call the API: origins as operators write them, as regular expressions."""

import re

# Ollama's own default list, and the extensions of browsers.
LOCAL = ("localhost", "127.0.0.1", "0.0.0.0")  # noqa: S104 - an origin, not an address to bind
APPS = ("app", "file", "tauri", "vscode-webview", "vscode-file")
EXTENSIONS = ("chrome-extension", "moz-extension", "safari-web-extension")
DEFAULT = (
    *(f"{scheme}://{host}" for scheme in ("http", "https") for host in LOCAL),
    *(f"{scheme}://{host}:*" for scheme in ("http", "https") for host in LOCAL),
    *(f"{scheme}://*" for scheme in (*APPS, *EXTENSIONS)),
)
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^/?#@\s]+")


def is_origin(text: str) -> bool:
    """Tell whether a text is an origin, in which `*` may stand for any part of a name or port."""
    return text == "*" or _ORIGIN.fullmatch(text.lower()) is not None


def pattern(origin: str) -> str:
    """Return a regular expression for an origin; `*` matches anything but a slash."""
    parts = (re.escape(part) for part in origin.lower().split("*"))
    return rf"^{'[^/]*'.join(parts)}\Z"
