"""What a client asks of a model, in one form for every client family."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from gateway.metering import Operation


@dataclass(frozen=True, slots=True)
class ClientTool:
    """A tool as its client knows it: a function or a custom tool, perhaps in a namespace."""

    kind: str
    name: str
    namespace: str = ""


@dataclass(frozen=True, slots=True)
class ResponseOptions:
    """How the client wants its response written; each family's parser sets what its renderer
    reads."""

    # OpenAI: a last chunk with the usage.
    include_usage: bool = False
    # OpenAI: embeddings as base64 of little-endian 32-bit floats.
    base64: bool = False
    # The Responses API: fields of the request that the response repeats.
    echo: Mapping[str, Any] = field(default_factory=dict)
    # The Responses API: whether the thinking is repeated so that the client can return it.
    encrypted_reasoning: bool = False
    # OpenAI: the tools whose calls are not written as plain functions, by their native names.
    tools: Mapping[str, ClientTool] = field(default_factory=dict)
    # The native names of the tools of which the model must call one.
    forced: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class InferenceRequest:
    """One request, parsed from its family's format. The policy has still to check its payload.

    `model` is the name as the client spelled it; responses repeat it. `payload` holds Ollama's own
    request fields, without model and stream.
    """

    operation: Operation
    model: str
    stream: bool
    payload: dict[str, Any] = field(default_factory=dict)
    options: ResponseOptions = field(default_factory=ResponseOptions)

    @property
    def delivers_chunks(self) -> bool:
        """Tell whether the client gets each chunk as it comes. A forced call is written at the end,
        from all chunks."""
        return self.stream and not self.options.forced
