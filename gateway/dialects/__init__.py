"""The client families, and which one an address belongs to."""

from gateway.dialects.anthropic.dialect import AnthropicDialect
from gateway.dialects.base import Dialect
from gateway.dialects.ollama import OllamaDialect
from gateway.dialects.openai.dialect import CHAT
from gateway.dialects.rest import RestDialect

OLLAMA: Dialect = OllamaDialect()
REST: Dialect = RestDialect()
OPENAI: Dialect = CHAT
ANTHROPIC: Dialect = AnthropicDialect()


def dialect_of(path: str) -> Dialect:
    """Return the family that an address belongs to, also where no view answers."""
    if path == "/" or path.startswith("/api/"):
        return OLLAMA
    if path.startswith("/v1/messages"):
        return ANTHROPIC
    return OPENAI if path.startswith("/v1/") else REST
