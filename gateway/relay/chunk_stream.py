"""The chunks of one response of the model server, with its deadlines."""

import logging
from collections.abc import Callable, Generator
from dataclasses import dataclass

from django.conf import settings

from gateway.errors import AnswerTooLong, ClientDisconnected, GatewayError, UpstreamBroke
from gateway.metering import Receipt
from gateway.relay.reader import IdleTimeout, ReaderThread
from gateway.upstream.cancellation import Cancellation
from gateway.upstream.chunk import Chunk
from gateway.upstream.client import LineStream
from gateway.upstream.protocol import truncated

logger = logging.getLogger(__name__)

# What asks the model server for one response, and what reads a line of it.
Send = Callable[[Cancellation], LineStream]
Read = Callable[[bytes], Chunk]


@dataclass(frozen=True, slots=True)
class Timeouts:
    """The longest silence between two chunks, and the longest time for all of them, in seconds."""

    read: float
    total: float


def default_timeouts() -> Timeouts:
    return Timeouts(settings.UPSTREAM_SILENCE_SECONDS, settings.UPSTREAM_TOTAL_SECONDS)


class ChunkStream:
    """One response. The request's thread calls it; another thread may only cancel its
    Cancellation, and then the next `take` raises the reason.

    With `keepalive_seconds`, a second thread reads, and `take` raises IdleTimeout after so many
    seconds without a chunk. `may_just_end`: a proper end without a last chunk is an end, after at
    least one chunk.
    """

    def __init__(
        self,
        send: Send,
        read: Read,
        cancellation: Cancellation,
        *,
        timeouts: Timeouts | None = None,
        keepalive_seconds: float | None = None,
        may_just_end: bool = True,
    ) -> None:
        self._cancellation = cancellation
        self._timeouts = timeouts or default_timeouts()
        self._keepalive_seconds = keepalive_seconds
        self._may_just_end = may_just_end
        self._chunks = self._read(send, read)
        self._source: Generator[Chunk, None, None] | ReaderThread = self._chunks
        self._first: Chunk | None = None
        self._keepalive_due = False
        self._closed = False

    def start(self) -> None:
        """Ask the model server and wait for the first chunk, or for the first IdleTimeout; raise
        GatewayError. So what fails early fails before the response has a status."""
        if self._keepalive_seconds is not None:
            self._source = ReaderThread(self._chunks, self._keepalive_seconds)
        try:
            self._first = self.take()
        except IdleTimeout:
            self._keepalive_due = True

    def take(self) -> Chunk:
        """Return the next chunk; raise UpstreamBroke where they end without a last one."""
        if self._keepalive_due:
            self._keepalive_due = False
            raise IdleTimeout
        first, self._first = self._first, None
        chunk = first or next(self._source, None)
        if chunk is None:
            raise UpstreamBroke()
        return chunk

    def _read(self, send: Send, read: Read) -> Generator[Chunk, None, None]:
        lines = send(self._cancellation)
        chunk = None
        try:
            for line in lines.lines():
                if chunk is None:
                    self._cancellation.set_read_timeout(self._timeouts.read)
                    self._cancellation.set_deadline(self._timeouts.total, AnswerTooLong)
                chunk = read(line)
                yield chunk
            if chunk is not None and self._may_just_end and lines.is_framed:
                # Ollama ends a repetitive response like this. After a last chunk it is harmless:
                # nobody takes another.
                yield truncated(chunk)
        finally:
            lines.close()

    # --- The end of an unmetered response ---

    def finish(self, _last: Chunk) -> Receipt | None:
        """End after the last chunk. Without a meter there is no receipt."""
        self.close()
        return None

    def fail(self, error: Exception) -> GatewayError:
        """End after an error, and return what the client is told."""
        self.close()
        return public_error(error)

    def close(self) -> None:
        """Release both connections; may be called again, and never raises."""
        if self._closed:
            return
        self._closed = True
        try:
            if isinstance(self._source, ReaderThread):
                # Its thread may be in a read that only this ends. After a complete response it is
                # harmless: the last chunk was taken, and nothing reads the reason any more.
                self._cancellation.cancel(ClientDisconnected)
            # First the Cancellation: it must not shut down a connection that is being closed.
            self._cancellation.detach()
            self._source.close()
        except Exception:
            logger.exception("A connection could not be closed")


def public_error(error: Exception) -> GatewayError:
    """Log why a response ended, and return the error for the client."""
    if not isinstance(error, GatewayError):
        logger.error("The relay failed", exc_info=error)
        return GatewayError()
    if error.cause:
        logger.warning("The model server failed: %s", error.cause)
    return error
