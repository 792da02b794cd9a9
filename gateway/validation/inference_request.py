"""What a client asks for, the same for every client family."""

from dataclasses import dataclass, field
from typing import Any

from gateway.metering import Operation


@dataclass(frozen=True, slots=True)
class Prompt:
    """One request, parsed from its family's shape; its fields still have to pass the policy.

    `model` is the name as the client spelled it, which answers echo. `fields` are Ollama's native
    request fields, without model and stream; `wants` is what the family's renderer must know of how
    the client wants its answer written.
    """

    operation: Operation
    model: str
    stream: bool
    fields: dict[str, Any] = field(default_factory=dict)
    wants: dict[str, Any] = field(default_factory=dict)
