"""One response in the format of its client family: a stream of bytes for WSGI, or one body."""

from collections.abc import Iterator
from typing import Protocol

from gateway.dialects.base import Renderer, SupportsKeepalive
from gateway.errors import GatewayError
from gateway.metering import Receipt
from gateway.relay.reader import IdleTimeout
from gateway.relay.response_memory import Share
from gateway.upstream.chunk import Chunk


class Chunks(Protocol):
    """Where the chunks come from: a ChunkStream, or MeteredChunks around one."""

    def start(self) -> None: ...

    def take(self) -> Chunk: ...

    def finish(self, last: Chunk, /) -> Receipt | None: ...

    def fail(self, error: Exception) -> GatewayError: ...

    def close(self) -> None: ...


class EncodedResponse:
    """Iterate it for a stream, or call `body` for one JSON body.

    `parts`: in how many parts of one size the body comes, where that is known.
    """

    def __init__(self, chunks: Chunks, renderer: Renderer, parts: int = 1) -> None:
        self._chunks = chunks
        self._renderer = renderer
        self._share = Share(parts)
        self._ended = False

    @property
    def content_type(self) -> str:
        return self._renderer.content_type

    def start(self) -> None:
        """Wait for the first chunk or the first keep-alive; raise GatewayError."""
        try:
            self._chunks.start()
        except Exception as error:
            self._chunks.fail(error)
            raise

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        if self._ended:
            raise StopIteration
        try:
            chunk = self._chunks.take()
            if not chunk.done:
                return self._renderer.chunk(chunk)
            receipt = self._chunks.finish(chunk)
            self._ended = True
            return self._renderer.last(chunk, receipt)
        except IdleTimeout:
            return self._keepalive()
        except Exception as error:
            self._ended = True
            return self._renderer.error(self._chunks.fail(error))

    def _keepalive(self) -> bytes:
        return self._renderer.keepalive() if isinstance(self._renderer, SupportsKeepalive) else b""

    def body(self) -> bytes:
        """Return one JSON body; raise GatewayError if the response does not end well."""
        chunks: list[Chunk] = []
        try:
            while not chunks or not chunks[-1].done:
                chunks.append(self._renderer.compact(self._chunks.take()))
                self._share.add(chunks[-1])
            return self._renderer.body(chunks, self._chunks.finish(chunks[-1]))
        except Exception as error:
            self.release()
            self._chunks.fail(error)
            raise

    def release(self) -> None:
        """Release the memory of a body: it has been sent."""
        self._share.release()

    def close(self) -> None:
        """End the response, written or not. The server calls it."""
        self._ended = True
        self._chunks.close()
