"""The client families, and which one a route belongs to."""

from gateway.dialects.anthropic.dialect import AnthropicDialect
from gateway.dialects.base import Dialect
from gateway.dialects.ollama import OllamaDialect
from gateway.dialects.openai.dialect import CHAT
from gateway.dialects.rest import RestDialect

OLLAMA: Dialect = OllamaDialect()
REST: Dialect = RestDialect()
OPENAI: Dialect = CHAT
ANTHROPIC: Dialect = AnthropicDialect()

# By the prefix of the path; of several that match the first counts. All other routes are REST.
FAMILIES: dict[str, Dialect] = {"/api/": OLLAMA, "/v1/messages": ANTHROPIC, "/v1/": OPENAI}


def dialect_of(path: str) -> Dialect:
    """Return the family of a path, also of one without a view."""
    if path == "/":  # Ollama's clients probe it.
        return OLLAMA
    return next((FAMILIES[prefix] for prefix in FAMILIES if path.startswith(prefix)), REST)
