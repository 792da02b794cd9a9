"""Count the chunks of one response, and close its meter exactly once.

However the response ends, `_end` runs once: after the last chunk, after an error, or in `close`,
which the server calls when the response is over, written or not. A generator's `finally` would not
do: it never runs for a generator that was never started.

Which outcomes are billed is decided in `billing/pricing.py`.
"""

import contextlib
import logging
import time

from django.conf import settings

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
from gateway.relay.chunk_stream import ChunkStream, public_error
from gateway.relay.reader import IdleTimeout
from gateway.relay.token_counter import TokenCounter
from gateway.upstream.cancellation import Cancellation
from gateway.upstream.chunk import Chunk
from gateway.upstream.protocol import truncated

logger = logging.getLogger(__name__)

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
    """Return the outcome of a response that this error ended. Other errors of the model server are
    refusals before the first chunk, and breaks after it."""
    if not isinstance(error, GatewayError):
        return Outcome.GATEWAY_FAILED
    if isinstance(error, BadRequest) and type(error) not in OUTCOMES:
        return Outcome.INVALID_REQUEST
    otherwise = Outcome.UPSTREAM_BROKE if started else Outcome.UPSTREAM_REFUSED
    return OUTCOMES.get(type(error), otherwise)


class MeteredChunks:
    """The chunks of a response that is billed.

    `streamed`: the client gets each chunk at once, so chunks count as delivered, and progress is
    recorded for a crash. A client that gets one body has nothing before its end.
    """

    def __init__(
        self,
        chunks: ChunkStream,
        cancellation: Cancellation,
        meter: Meter,
        counter: TokenCounter,
        *,
        streamed: bool,
    ) -> None:
        self._chunks = chunks
        self._cancellation = cancellation
        self._meter = meter
        self._counter = counter
        self._streamed = streamed
        self._grace = settings.DISCONNECT_GRACE_MS / 1000
        self._ended = False

    def start(self) -> None:
        """Wait for the first chunk. It is counted when it is taken: until then nothing of it was
        handed on."""
        self._chunks.start()

    def take(self) -> Chunk:
        """Return the next chunk, or an end in its place; raise GatewayError or IdleTimeout."""
        chunk = self._chunks.take()
        if self._cancellation.client_left:
            self._drain(chunk)
            raise ClientDisconnected()
        if self._counter.over_limit and chunk.carries_output and not chunk.done:
            # The model server ignores the limit it was given. The hold covers no more.
            return truncated(chunk)
        self._counter.add(chunk)
        if self._streamed:
            self._meter.progress(self._counter.billable_tokens)
            if not chunk.done:
                self._cancellation.grace = self._grace
        return chunk

    def finish(self, last: Chunk) -> Receipt | None:
        """Settle a complete response. Called before its last chunk is handed on: a client that saw
        the end has been billed, durably."""
        return self._end(self._final_usage(last), Outcome.COMPLETE)

    def fail(self, error: Exception) -> GatewayError:
        """Settle a response that broke, and return what the client is told."""
        if self._cancellation.client_left and isinstance(error, GatewayError):
            error = ClientDisconnected()  # The disconnect came first, whatever it led to.
        self._settle(_outcome_of(error, started=self._counter.started))
        return public_error(error)

    def close(self) -> None:
        """End a response that has not ended yet: its client has disconnected."""
        if self._cancellation.grace and not self._ended:
            # The server could not write, and knew of it before the Cancellation.
            self._cancellation.client_disconnected()
            self._drain()
        self._settle(Outcome.CLIENT_LEFT)

    def _drain(self, chunk: Chunk | None = None) -> None:
        """Settle a stream whose client has disconnected: by the model server's counts if they come
        within the grace, as they do after a tool call, else by what was counted. Chunks that come
        meanwhile are not counted, since nobody gets them."""
        self._cancellation.set_read_timeout(self._grace)
        usage = self._counter.partial()
        give_up_at = time.monotonic() + 2 * self._grace
        try:
            while chunk is None or not chunk.done:
                if time.monotonic() > give_up_at:
                    raise ClientDisconnected()
                with contextlib.suppress(IdleTimeout):
                    chunk = self._chunks.take()
            usage = self._final_usage(chunk)
        except Exception as error:
            if not isinstance(error, GatewayError):
                logger.error("The relay failed", exc_info=error)
        self._end(usage, Outcome.CLIENT_LEFT)

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

    def _settle(self, outcome: Outcome) -> None:
        self._end(self._counter.partial(delivered=self._streamed), outcome)

    def _end(self, usage: Usage, outcome: Outcome) -> Receipt | None:
        """Close the meter. Nothing else does, and it runs once: the first end counts.

        The connections are released before it: the model stops at once, while the database may
        take seconds.
        """
        if self._ended:
            return None
        self._ended = True
        try:
            self._chunks.close()
        finally:
            receipt = self._close_meter(usage, outcome)
        return receipt

    def _close_meter(self, usage: Usage, outcome: Outcome) -> Receipt | None:
        """Close the meter, or discard it for a request that never reached the model server."""
        if self._cancellation.reached_upstream:
            return self._meter.close(usage, outcome)
        self._meter.discard(outcome)
        return None
