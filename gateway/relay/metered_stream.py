"""Relay one answer from the model server to the client, and close its meter exactly once.

The promises kept here:
- The first chunk is there before the response starts, so what fails early fails with a status.
  A client that is to get signs of life is answered after one such time without a chunk.
- The bill is settled before the last chunk is handed on: a client that saw the end has been
  billed, durably.
- However the answer ends, `_end` runs once: at the last chunk, at a fault, or in `close`, which
  the server calls when the response is over, written or not. A generator's `finally` would not
  do: it never runs for a generator that was never started.

An answer belongs to the thread of its request; with a ReaderThread, a second one reads its chunks.
Any other breaks its connection off, through its Cancellation, and no more: the next read raises
why.
"""

import contextlib
import logging
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass

from django.conf import settings

from gateway.dialects.base import Renderer, SupportsKeepalive
from gateway.errors import (
    AnswerTooLong,
    BadRequest,
    ClientDisconnected,
    GatewayBusy,
    GatewayError,
    GatewayStopping,
    KeyRevoked,
    UpstreamBroke,
    UpstreamStalled,
)
from gateway.metering import Meter, Outcome, Receipt, Usage
from gateway.relay.reader import IdleTimeout, ReaderThread
from gateway.relay.response_memory import Share
from gateway.relay.token_counter import TokenCounter
from gateway.upstream.cancellation import Cancellation
from gateway.upstream.chunk import Chunk
from gateway.upstream.client import LineStream
from gateway.upstream.protocol import truncated

logger = logging.getLogger(__name__)

# How the model server is asked for one answer, and how a line of it is read.
Send = Callable[[Cancellation], LineStream]
Read = Callable[[bytes], Chunk]

OUTCOMES: dict[type[GatewayError], Outcome] = {
    AnswerTooLong: Outcome.ANSWER_TOO_LONG,
    ClientDisconnected: Outcome.CLIENT_LEFT,
    GatewayBusy: Outcome.GATEWAY_FAILED,
    GatewayStopping: Outcome.GATEWAY_STOPPED,
    KeyRevoked: Outcome.KEY_REVOKED,
    UpstreamBroke: Outcome.UPSTREAM_BROKE,
    UpstreamStalled: Outcome.UPSTREAM_STALLED,
}


def _outcome_of(error: Exception, *, started: bool) -> Outcome:
    """Return how an answer ended that raised this: whatever else the model server says refuses an
    answer before its first chunk and breaks it off after, and what is no error of ours is a bug."""
    if not isinstance(error, GatewayError):
        return Outcome.GATEWAY_FAILED
    if isinstance(error, BadRequest) and type(error) not in OUTCOMES:
        return Outcome.INVALID_REQUEST
    otherwise = Outcome.UPSTREAM_BROKE if started else Outcome.UPSTREAM_REFUSED
    return OUTCOMES.get(type(error), otherwise)


@dataclass(frozen=True, slots=True)
class Timeouts:
    """How long an answer may be silent, how long it may take in all, and how long it may go on
    after its client has left in mid-stream, in seconds."""

    read: float
    total: float
    grace: float = 0.0


class MeteredStream:
    """One answer on its way. Iterate it for a stream, or call `body` for one JSON answer."""

    def __init__(
        self,
        *,
        meter: Meter,
        counter: TokenCounter,
        renderer: Renderer,
        cancellation: Cancellation,
        timeouts: Timeouts | None = None,
        may_just_end: bool = True,
        parts: int = 1,
    ) -> None:
        """`may_just_end`: a proper end without a last chunk is an end, after at least one chunk.
        `parts`: in how many parts of one size the answer comes, where that is known."""
        self._meter = meter
        self._counter = counter
        self._renderer = renderer
        self._cancellation = cancellation
        self._timeouts = timeouts or Timeouts(
            read=settings.UPSTREAM_SILENCE_SECONDS,
            total=settings.UPSTREAM_TOTAL_SECONDS,
            grace=settings.DISCONNECT_GRACE_MS / 1000,
        )
        self._chunks: Generator[Chunk, None, None] | ReaderThread = _nothing()
        # Read by `start`, not yet counted: nothing of it has been handed on.
        self._first: Chunk | None = None
        self._may_just_end = may_just_end
        self._is_whole = False
        self._share = Share(parts)
        self._ended = False
        self._keepalive_due = False

    def start(
        self,
        send: Send,
        read: Read,
        keepalive_seconds: float | None = None,
    ) -> None:
        """Ask the model server and wait for its first chunk; raise GatewayError.

        `keepalive_seconds`: after so many seconds of silence the client gets a keep-alive, and the
        response starts without a first chunk.
        """
        try:
            chunks = self._open(send, read)
            self._chunks = (
                chunks if keepalive_seconds is None else ReaderThread(chunks, keepalive_seconds)
            )
            self._first = self._take()
        except IdleTimeout:
            self._keepalive_due = True
        except Exception as error:
            self._fail(error)
            raise

    def _open(self, send: Send, read: Read) -> Generator[Chunk, None, None]:
        answer = send(self._cancellation)
        chunk = None
        try:
            for line in answer.lines():
                if chunk is None:
                    self._cancellation.set_read_timeout(self._timeouts.read)
                    self._cancellation.set_deadline(self._timeouts.total, AnswerTooLong)
                chunk = read(line)
                yield chunk
            if chunk is not None and self._may_just_end and answer.is_framed:
                # Ollama ends a response so that repeats itself. Harmless after a last chunk: nobody
                # takes another.
                yield truncated(chunk)
        finally:
            answer.close()

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        if self._ended:
            raise StopIteration
        if self._keepalive_due:
            self._keepalive_due = False
            return self._keepalive()
        try:
            chunk = self._take()
            if self._cancellation.client_left:
                return self._renderer.error(self._drain(chunk))
            chunk = self._count(chunk)
            if not chunk.done:
                self._cancellation.grace = self._timeouts.grace
                return self._renderer.chunk(chunk)
            return self._renderer.last(chunk, self._finish(chunk))
        except IdleTimeout:
            return self._keepalive()
        except Exception as error:
            return self._renderer.error(self._fail(error))

    def _keepalive(self) -> bytes:
        return self._renderer.keepalive() if isinstance(self._renderer, SupportsKeepalive) else b""

    def body(self) -> bytes:
        """Return the answer as one JSON body; raise GatewayError if it does not end well."""
        self._is_whole = True
        chunks: list[Chunk] = []
        try:
            while not chunks or not chunks[-1].done:
                chunks.append(self._renderer.compact(self._count(self._take())))
                self._share.add(chunks[-1])
            return self._renderer.body(chunks, self._finish(chunks[-1]))
        except Exception as error:
            self.release()
            self._fail(error)
            raise

    def release(self) -> None:
        """Give back the room that a whole answer takes: it has been sent."""
        self._share.release()

    def close(self) -> None:
        """Let go of both connections; what has not ended by now ends because the client left."""
        if self._cancellation.grace and not self._ended:
            # The server could not write, and knew it before the Cancellation.
            self._cancellation.client_disconnected()
            self._drain()
        self._settle(Outcome.CLIENT_LEFT)

    # --- Chunks -----------------------------------------------------------------------------------

    def _take(self) -> Chunk:
        """Return the next chunk; raise UpstreamBroke where they end without a last one."""
        first, self._first = self._first, None
        chunk = first or next(self._chunks, None)
        if chunk is None:
            raise UpstreamBroke()
        return chunk

    def _count(self, chunk: Chunk) -> Chunk:
        """Count a chunk and return it, or an end in its place."""
        if self._counter.over_limit and chunk.carries_output and not chunk.done:
            # The model server ignores the limit it was given; the hold covers no more.
            return truncated(chunk)
        self._counter.add(chunk)
        if not self._is_whole:
            # After a crash a client of a whole response has nothing.
            self._meter.progress(self._counter.billable_tokens)
        return chunk

    def _drain(self, chunk: Chunk | None = None) -> GatewayError:
        """Settle a stream whose client has left: by the model server's counts if they come within
        the grace, as they do after a tool call, else by what was counted. What comes meanwhile is
        not counted, since nobody gets it."""
        self._cancellation.set_read_timeout(self._timeouts.grace)
        usage = self._counter.partial()
        give_up_at = time.monotonic() + 2 * self._timeouts.grace
        try:
            while chunk is None or not chunk.done:
                if time.monotonic() > give_up_at:
                    raise ClientDisconnected()
                with contextlib.suppress(IdleTimeout):
                    chunk = self._take()
            usage = self._final_usage(chunk)
        except Exception as error:
            if not isinstance(error, GatewayError):
                logger.error("The relay failed", exc_info=error)
        self._end(usage, Outcome.CLIENT_LEFT)
        return ClientDisconnected()

    # --- The end ----------------------------------------------------------------------------------

    def _finish(self, last: Chunk) -> Receipt | None:
        return self._end(self._final_usage(last), Outcome.COMPLETE)

    def _final_usage(self, last: Chunk) -> Usage:
        usage = self._counter.final(last)
        if self._counter.is_beyond(last.prompt_tokens):
            logger.warning(
                "The model server counted %s prompt tokens, more than the prompt can have; %s are "
                "billed.",
                last.prompt_tokens,
                usage.prompt_tokens,
            )
        return usage

    def _fail(self, error: Exception) -> GatewayError:
        """Settle an answer that broke, and return what the client is told."""
        if self._cancellation.client_left and isinstance(error, GatewayError):
            error = ClientDisconnected()  # Whatever ended it then, the client was first.
        self._settle(_outcome_of(error, started=self._counter.started))
        if isinstance(error, GatewayError):
            if error.cause:
                logger.warning("The model server failed: %s", error.cause)
            return error
        logger.error("The relay failed", exc_info=error)
        return GatewayError()

    def _settle(self, outcome: Outcome) -> None:
        self._end(self._counter.partial(delivered=not self._is_whole), outcome)

    def _end(self, usage: Usage, outcome: Outcome) -> Receipt | None:
        """The only place that closes the meter; `_ended` lets it run once, so the first end stands.

        The connections first: the model stops before the database is asked, which may take seconds.
        A whole answer has no more need of them either.
        """
        if self._ended:
            return None
        self._ended = True
        try:
            self._release_connections()
        except Exception:
            logger.exception("A connection was not let go of in good order")
        finally:
            receipt = self._close_meter(usage, outcome)
        return receipt

    def _close_meter(self, usage: Usage, outcome: Outcome) -> Receipt | None:
        """Leave no trace of a request that never reached the model server."""
        if self._cancellation.reached_upstream:
            return self._meter.close(usage, outcome)
        self._meter.discard(outcome)
        return None

    def _release_connections(self) -> None:
        if isinstance(self._chunks, ReaderThread):
            # Its thread may be in a read, from which only this frees it. Harmless after a whole
            # answer too: its last chunk is here, and nobody asks the Cancellation why it was cut
            # any more.
            self._cancellation.cancel(ClientDisconnected)
        # The Cancellation before the answer: it must not break off what is being closed in good
        # order.
        self._cancellation.detach()
        self._chunks.close()


def _nothing() -> Generator[Chunk, None, None]:
    """Return what there is to read before anything was asked."""
    yield from ()
