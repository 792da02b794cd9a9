"""What the gateway needs of a client family: parse a request, write its response. Pure, no I/O."""

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

from gateway.errors import GatewayError
from gateway.metering import Operation, Receipt
from gateway.upstream.chunk import Chunk
from gateway.validation.inference_request import InferenceRequest


class Renderer(Protocol):
    """Writes one response in the family's format. May keep state from chunk to chunk."""

    content_type: str

    def chunk(self, chunk: Chunk) -> bytes:
        """Return the bytes of a chunk that is not the last."""

    def last(self, chunk: Chunk, receipt: Receipt | None) -> bytes:
        """Return the bytes that end a complete stream."""

    def error(self, error: GatewayError) -> bytes:
        """Return the bytes that end a broken stream, which must never look complete."""

    def compact(self, chunk: Chunk) -> Chunk:
        """Return a chunk of a request that does not stream, with no more than `body` needs."""

    def body(self, chunks: Sequence[Chunk], receipt: Receipt | None) -> bytes:
        """Return the one JSON body of a request that does not stream."""


@runtime_checkable
class SupportsKeepalive(Protocol):
    """A renderer whose family skips keep-alives in a stream. Clients of Ollama's API do not: a
    blank line or a comment breaks them."""

    def keepalive(self) -> bytes:
        """Return the bytes that keep a silent connection open."""


def sdk_retry_headers(status: int) -> dict[str, str]:
    """Return what stops an SDK from repeating a request that waiting does not help: for lack of
    credit, or at a monthly cap."""
    return {"x-should-retry": "false"} if status in (402, 429) else {}


class Dialect(Protocol):
    """One client family."""

    def parse(self, operation: Operation, body: dict[str, Any]) -> InferenceRequest:
        """Read a request body; raise BadRequest."""

    def renderer(self, request: InferenceRequest, request_id: str) -> Renderer:
        """Return what writes the response to a request."""

    def error(self, error: GatewayError, request_id: str) -> bytes:
        """Return the body of an error response."""

    def headers(self, status: int, request_id: str, seconds: float) -> dict[str, str]:
        """Return the headers that the family's SDKs look for. `seconds`: from the request's arrival
        to the start of its response."""
