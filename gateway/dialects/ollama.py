"""The client family that uses Ollama's own API. Pure.

The official clients fail on blank lines and on a good chunk that has an `error` key. They stop
reading at the first `done: true`.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from gateway.dialects.fields import (
    error_object,
    joined,
    json_line,
    model_of,
    probabilities,
    usage_object,
    vectors,
    wants_stream,
)
from gateway.dialects.json_fragments import compact
from gateway.errors import BadRequest, GatewayError
from gateway.metering import Operation, Receipt
from gateway.upstream.chunk import Chunk
from gateway.validation.inference_request import InferenceRequest
from gateway.validation.rules import reject_lookalikes

# Where a model of the operator's really runs is nobody's business; the rest is debugging.
PRIVATE = ("remote_model", "remote_host", "_debug_info", "error")
STREAMS_BY_DEFAULT = {Operation.GENERATE, Operation.CHAT}


# --- Requests --------------------------------------------------------------------------------


class OllamaDialect:
    """Requests and answers as Ollama's own API has them."""

    def parse(self, operation: Operation, body: dict[str, Any]) -> InferenceRequest:
        reject_lookalikes(body)
        return InferenceRequest(
            operation=operation,
            model=model_of(body),
            stream=wants_stream(body, default=operation in STREAMS_BY_DEFAULT),
            payload=body,
        )

    def renderer(self, request: InferenceRequest, request_id: str) -> "OllamaRenderer":
        return OllamaRenderer(request, request_id)

    def error(self, error: GatewayError, request_id: str) -> bytes:
        found = error_object(error, request_id)
        # The command `ollama` shows `status` of a 401; without, it points to the server's log.
        return json_line(found | {"status": error.message} if error.status == 401 else found)

    def headers(self, status: int, request_id: str, seconds: float) -> dict[str, str]:
        return {}


# --- Responses -------------------------------------------------------------------------------


class OllamaRenderer:
    """Passes native objects on, with the client's own spelling of the model and the usage."""

    content_type = "application/x-ndjson"

    def __init__(self, request: InferenceRequest, request_id: str) -> None:
        self.request = request
        self.request_id = request_id

    def chunk(self, chunk: Chunk) -> bytes:
        return json_line(self._public(chunk))

    def last(self, chunk: Chunk, receipt: Receipt | None) -> bytes:
        return json_line(self._public(chunk) | usage_object(receipt))

    def error(self, error: GatewayError) -> bytes:
        return json_line(error_object(error, self.request_id))

    def compact(self, chunk: Chunk) -> Chunk:
        return compact(chunk, logprobs=probabilities([chunk]), embeddings=vectors([chunk]))

    def body(self, chunks: Sequence[Chunk], receipt: Receipt | None) -> bytes:
        answer = self._public(chunks[-1])
        if self.request.operation is Operation.EMBED:
            answer |= {"embeddings": vectors(chunks)}
        else:
            answer |= joined(self.request.operation, chunks)
        return json_line(answer | usage_object(receipt))

    def _public(self, chunk: Chunk) -> dict[str, Any]:
        return {"model": self.request.model, **_without((*PRIVATE, "model"), chunk.fields)}


# --- The older embeddings route -----------------------------------------------------------------


class LegacyEmbeddingsDialect(OllamaDialect):
    """`/api/embeddings`: one `prompt`, one vector. Ollama's own gives no counts, so it is served
    by `/api/embed` upstream."""

    def parse(self, operation: Operation, body: dict[str, Any]) -> InferenceRequest:
        prompt = body.get("prompt")
        if not isinstance(prompt, str | None):
            raise BadRequest("'prompt' must be a string.")
        return super().parse(operation, {**body, "input": prompt, "stream": False})

    def renderer(self, request: InferenceRequest, request_id: str) -> "OllamaRenderer":
        return LegacyEmbeddingsRenderer(request, request_id)


class LegacyEmbeddingsRenderer(OllamaRenderer):
    """Writes the one vector under the older name."""

    def body(self, chunks: Sequence[Chunk], receipt: Receipt | None) -> bytes:
        found = vectors(chunks).parts
        return json_line({"embedding": found[0] if found else []} | usage_object(receipt))


# --- Pulling a model ------------------------------------------------------------------------------


class ProgressRenderer:
    """Passes the progress of a pull on. There is no model to name and no usage."""

    content_type = "application/x-ndjson"

    def __init__(self, request_id: str) -> None:
        self.request_id = request_id

    def chunk(self, chunk: Chunk) -> bytes:
        return json_line(_without(PRIVATE, chunk.fields))

    def last(self, chunk: Chunk, _receipt: Receipt | None) -> bytes:
        return self.chunk(chunk)

    def error(self, error: GatewayError) -> bytes:
        return json_line(error_object(error, self.request_id))

    def compact(self, chunk: Chunk) -> Chunk:
        return chunk if chunk.done else Chunk()

    def body(self, chunks: Sequence[Chunk], _receipt: Receipt | None) -> bytes:
        return self.chunk(chunks[-1])


def _without(names: Collection[str], fields: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if name not in names}
