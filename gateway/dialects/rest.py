"""The gateway's own REST family: one JSON answer unless asked to stream, text in `response`."""

from collections.abc import Sequence
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
from gateway.dialects.json_fragments import Items, compact
from gateway.errors import BadRequest, GatewayError
from gateway.metering import Operation, Receipt
from gateway.upstream.chunk import Chunk
from gateway.validation.inference_request import InferenceRequest
from gateway.validation.rules import reject_lookalikes


class RestDialect:
    """Requests and answers of `/generate`, `/chat` and `/embedding`."""

    def parse(self, operation: Operation, body: dict[str, Any]) -> InferenceRequest:
        reject_lookalikes(body)
        asked = {Operation.GENERATE: "prompt", Operation.CHAT: "messages", Operation.EMBED: "input"}
        fields = dict(body)
        if operation is Operation.EMBED:
            fields["input"] = body.get("input", body.get("prompt"))
        if not fields.get(asked[operation]):
            raise BadRequest(f"'{asked[operation]}' is required.")
        stream = wants_stream(body, default=False)
        if stream and operation is Operation.EMBED:
            raise BadRequest("An embedding cannot be streamed.")
        return InferenceRequest(operation, model_of(body), stream, fields)

    def renderer(self, request: InferenceRequest, request_id: str) -> "RestRenderer":
        return RestRenderer(request, request_id)

    def error(self, error: GatewayError, request_id: str) -> bytes:
        return json_line(error_object(error, request_id))

    def headers(self, status: int, request_id: str, seconds: float) -> dict[str, str]:
        return {}


class RestRenderer:
    """Writes the same few fields for every operation: model, what was said, done, usage."""

    content_type = "application/x-ndjson"

    def __init__(self, request: InferenceRequest, request_id: str) -> None:
        self.request = request
        self.request_id = request_id

    def chunk(self, chunk: Chunk) -> bytes:
        return json_line(self._said([chunk]) | {"done": False})

    def last(self, chunk: Chunk, receipt: Receipt | None) -> bytes:
        return json_line(self._ended([chunk], receipt))

    def error(self, error: GatewayError) -> bytes:
        return json_line(error_object(error, self.request_id))

    def compact(self, chunk: Chunk) -> Chunk:
        return compact(chunk, logprobs=probabilities([chunk]), embeddings=vectors([chunk]))

    def body(self, chunks: Sequence[Chunk], receipt: Receipt | None) -> bytes:
        if self.request.operation is Operation.EMBED:
            return json_line(self._vectors(vectors(chunks)) | usage_object(receipt))
        return json_line(self._ended(chunks, receipt))

    def _ended(self, chunks: Sequence[Chunk], receipt: Receipt | None) -> dict[str, Any]:
        reason = chunks[-1].fields.get("done_reason", "stop")
        ending = {"done": True, "done_reason": reason}
        return self._said(chunks) | ending | usage_object(receipt)

    def _said(self, chunks: Sequence[Chunk]) -> dict[str, Any]:
        said = joined(self.request.operation, chunks)
        if self.request.operation is Operation.CHAT:
            said = {"response": said["message"]["content"], **said}
        return {"model": self.request.model, **said}

    def _vectors(self, found: Items) -> dict[str, Any]:
        """Return `embedding` for one string, `embeddings` for a list of them."""
        if isinstance(self.request.payload["input"], str):
            return {"model": self.request.model, "embedding": found.parts[0] if found else []}
        return {"model": self.request.model, "embeddings": found}
