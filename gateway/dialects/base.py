"""What the gateway asks of a client family: read a request, write an answer. Pure, no I/O."""

from collections.abc import Sequence
from typing import Any, Protocol

from gateway.errors import GatewayError
from gateway.metering import Operation, Receipt
from gateway.upstream.chunk import Chunk
from gateway.validation.inference_request import Prompt


class Renderer(Protocol):
    """Writes one answer in the family's shape. May keep state from chunk to chunk."""

    content_type: str
    # Whether a silent stream of this family can carry a sign of life.
    supports_keepalive: bool

    def idle(self) -> bytes:
        """Return what keeps a silent connection open; only families that have such a thing are
        asked for it."""

    def chunk(self, chunk: Chunk) -> bytes:
        """Return the bytes of a chunk that is not the last."""

    def last(self, chunk: Chunk, receipt: Receipt | None) -> bytes:
        """Return the bytes that end a good stream."""

    def failure(self, error: GatewayError) -> bytes:
        """Return the bytes that end a broken stream, which must never look complete."""

    def kept(self, chunk: Chunk) -> Chunk:
        """Return a chunk of a request that does not stream, with no more than `whole` needs."""

    def whole(self, chunks: Sequence[Chunk], receipt: Receipt | None) -> bytes:
        """Return the one JSON answer of a request that does not stream."""


class Dialect(Protocol):
    """One client family."""

    def parse(self, operation: Operation, body: dict[str, Any]) -> Prompt:
        """Read a request body; raise BadRequest."""

    def renderer(self, prompt: Prompt, request_id: str) -> Renderer:
        """Return what writes the answer to this prompt."""

    def error(self, error: GatewayError, request_id: str) -> bytes:
        """Return the body of an error answer."""
