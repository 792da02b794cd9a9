"""The paths of the project's URL patterns."""

from collections.abc import Iterator
from typing import Any

from django.urls import URLPattern, URLResolver, get_resolver


def paths(patterns: Any = None, start: str = "/") -> Iterator[str]:
    """Return every path of the project, with a 1 for each part that varies."""
    for pattern in get_resolver().url_patterns if patterns is None else patterns:
        part = str(pattern.pattern)
        for name, converter in pattern.pattern.converters.items():
            part = part.replace(f"<{_prefix(converter)}{name}>", "1")
        if isinstance(pattern, URLResolver):
            yield from paths(pattern.url_patterns, start + part)
        elif isinstance(pattern, URLPattern):
            yield start + (part if "(" not in part else "1")


def _prefix(converter: Any) -> str:
    prefixes = {"Path": "path:", "Int": "int:", "Slug": "slug:", "UUID": "uuid:", "String": ""}
    return prefixes[type(converter).__name__.removesuffix("Converter")]
