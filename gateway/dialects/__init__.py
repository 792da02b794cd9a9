"""The client families, and which one an address belongs to."""

from gateway.dialects.base import Dialect
from gateway.dialects.ollama import OllamaDialect
from gateway.dialects.rest import RestDialect

OLLAMA: Dialect = OllamaDialect()
REST: Dialect = RestDialect()


def dialect_of(path: str) -> Dialect:
    """Return the family that an address belongs to, also where no view answers."""
    return OLLAMA if path == "/" or path.startswith("/api/") else REST
