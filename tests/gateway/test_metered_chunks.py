"""One answer on its way: its meter is closed once, whatever fails, and nobody watches it after."""

import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from gateway.dialects.ollama import OllamaRenderer
from gateway.errors import ClientDisconnected, GatewayBusy, KeyRevoked, UpstreamBroke
from gateway.metering import CountSource, NullMeter, Operation, Outcome, Receipt, Usage
from gateway.relay.chunk_stream import ChunkStream
from gateway.relay.encoded_response import EncodedResponse
from gateway.relay.metered_chunks import MeteredChunks
from gateway.relay.token_counter import SLACK, TokenCounter
from gateway.upstream.cancellation import Cancellation, disconnect_monitor
from gateway.upstream.protocol import read_chunk
from gateway.validation.inference_request import InferenceRequest

PIECE = b'{"response": "x", "done": false}'
LAST = b'{"response": "", "done": true, "prompt_eval_count": 3, "eval_count": 2}'


class Notebook(NullMeter):
    """A meter that writes down what it is told."""

    def __init__(self) -> None:
        self.noted: list[int] = []
        self.closed: list[tuple[Usage, Outcome]] = []

    def progress(self, completion_tokens: int) -> None:
        self.noted.append(completion_tokens)

    def close(self, usage: Usage, outcome: Outcome) -> Receipt | None:
        self.closed.append((usage, outcome))
        return None


class Lines:
    """An answer of these lines."""

    def __init__(self, *lines: bytes, is_framed: bool = True) -> None:
        self._lines = lines
        self.is_framed = is_framed
        self.open = True

    def lines(self) -> Iterator[bytes]:
        yield from self._lines

    def close(self) -> None:
        self.open = False


@pytest.fixture
def cancellation() -> Iterator[Cancellation]:
    found = Cancellation(None)
    found.reached_upstream = True
    disconnect_monitor.add(found)
    yield found
    disconnect_monitor.remove(found)


def begun(
    meter: Any,
    cancellation: Cancellation,
    answer: Lines,
    bound: int = 10,
    keepalive_seconds: float | None = None,
) -> EncodedResponse:
    """Return a started response to a streamed request."""
    chunks = ChunkStream(
        lambda _cancellation: answer, read, cancellation, keepalive_seconds=keepalive_seconds
    )
    metered = MeteredChunks(chunks, cancellation, meter, TokenCounter(5, bound), streamed=True)
    request = InferenceRequest(Operation.GENERATE, "llama3", stream=True)
    response = EncodedResponse(metered, OllamaRenderer(request, "id"))
    response.start()
    return response


def read(line: bytes) -> Any:
    return read_chunk(Operation.GENERATE, line)


def no_thread(*_args: Any) -> None:
    raise RuntimeError("can't start new thread")


def test_an_answer_without_a_thread_to_read_it_is_settled_and_let_go(
    cancellation: Cancellation, monkeypatch: pytest.MonkeyPatch
) -> None:
    meter = Notebook()
    monkeypatch.setattr(threading.Thread, "start", no_thread)

    with pytest.raises(GatewayBusy):
        begun(meter, cancellation, Lines(PIECE), keepalive_seconds=1)

    assert meter.closed == [(Usage(), Outcome.GATEWAY_FAILED)]
    assert cancellation not in disconnect_monitor.running()


def test_what_is_noted_for_a_crash_is_never_more_than_was_held(cancellation: Cancellation) -> None:
    meter = Notebook()

    list(begun(meter, cancellation, Lines(*[PIECE] * (SLACK + 6)), bound=4))

    assert meter.noted[:4] == [1, 2, 3, 4] and set(meter.noted[4:]) == {4}


def test_the_model_server_is_let_go_of_before_the_meter_is_asked(
    cancellation: Cancellation,
) -> None:
    answer = Lines(PIECE, LAST)
    seen: list[tuple[bool, bool]] = []

    class Asking(Notebook):
        def close(self, usage: Usage, outcome: Outcome) -> Receipt | None:
            seen.append((answer.open, cancellation in disconnect_monitor.running()))
            return super().close(usage, outcome)

    meter = Asking()
    list(begun(meter, cancellation, answer))

    assert seen == [(False, False)] and meter.closed[0][1] is Outcome.COMPLETE


def test_a_fault_in_letting_go_does_not_keep_the_meter_open(
    cancellation: Cancellation, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_answer: Lines) -> None:
        raise OSError("a connection that cannot be closed")

    monkeypatch.setattr(Lines, "close", fail)
    meter = Notebook()

    *_, last = begun(meter, cancellation, Lines(PIECE, LAST))

    assert b'"done":true' in last
    assert [outcome for _usage, outcome in meter.closed] == [Outcome.COMPLETE]


def test_a_proper_end_without_a_last_chunk_is_an_end(cancellation: Cancellation) -> None:
    meter = Notebook()

    *_, last = begun(meter, cancellation, Lines(PIECE, PIECE))

    assert b'"done":true' in last and b'"done_reason":"length"' in last
    [(usage, outcome)] = meter.closed
    assert outcome is Outcome.COMPLETE
    assert (usage.prompt_tokens, usage.completion_tokens, usage.source) == (5, 2, "counted")


def test_an_end_before_the_first_chunk_is_a_break(cancellation: Cancellation) -> None:
    meter = Notebook()

    with pytest.raises(UpstreamBroke):
        begun(meter, cancellation, Lines())

    assert meter.closed == [(Usage(), Outcome.UPSTREAM_BROKE)]


def test_whatever_comes_after_the_end_closes_no_meter_again(cancellation: Cancellation) -> None:
    meter = Notebook()
    answer = begun(meter, cancellation, Lines(PIECE, is_framed=False))

    assert b"upstream_broke" in list(answer)[-1]
    answer.close()
    answer.close()

    assert [outcome for _usage, outcome in meter.closed] == [Outcome.UPSTREAM_BROKE]
    assert list(answer) == []


# --- A client that leaves in mid-stream -----------------------------------------------------------


def left(meter: Any, cancellation: Cancellation, answer: Lines) -> EncodedResponse:
    """Return a stream whose client has left after the first chunk."""
    found = begun(meter, cancellation, answer)
    next(found)
    cancellation.client_disconnected()
    return found


@pytest.mark.parametrize("pieces", [[LAST], [PIECE, PIECE, LAST]])
def test_counts_that_come_soon_after_a_client_has_left_are_believed(
    cancellation: Cancellation, pieces: list[bytes]
) -> None:
    meter = Notebook()

    [told] = left(meter, cancellation, Lines(PIECE, *pieces))

    assert b"client_left" in told and b"done" not in told
    assert meter.closed == [(Usage(3, 2, CountSource.UPSTREAM, started=True), Outcome.CLIENT_LEFT)]


@pytest.mark.parametrize("pieces", [[], [PIECE] * 5, [b"nonsense"], [b'{"error": "x"}']])
def test_without_counts_a_client_that_has_left_pays_for_what_it_got(
    cancellation: Cancellation, pieces: list[bytes]
) -> None:
    meter = Notebook()

    list(left(meter, cancellation, Lines(PIECE, *pieces)))

    [(usage, outcome)] = meter.closed
    assert outcome is Outcome.CLIENT_LEFT
    assert (usage.prompt_tokens, usage.completion_tokens, usage.source) == (5, 1, "counted")


def test_a_server_that_cannot_write_has_the_counts_waited_for(cancellation: Cancellation) -> None:
    meter = Notebook()
    found = begun(meter, cancellation, Lines(PIECE, PIECE, LAST))
    next(found)

    found.close()

    assert [(usage.completion_tokens, outcome) for usage, outcome in meter.closed] == [
        (2, Outcome.CLIENT_LEFT)
    ]


def test_who_leaves_before_the_first_chunk_stops_the_model_server_at_once(
    cancellation: Cancellation,
) -> None:
    cancellation.client_disconnected()

    assert cancellation.reason is ClientDisconnected


def test_a_revocation_cuts_also_while_counts_are_waited_for(cancellation: Cancellation) -> None:
    cancellation.grace = 60.0
    cancellation.client_disconnected()
    assert cancellation.reason is None and cancellation in disconnect_monitor.running()

    cancellation.cancel(KeyRevoked)

    assert cancellation.reason is KeyRevoked


def test_the_wait_for_counts_ends(cancellation: Cancellation) -> None:
    cancellation.grace = 0.05
    cancellation.client_disconnected()

    deadline = time.monotonic() + 5
    while cancellation.reason is None and time.monotonic() < deadline:
        time.sleep(0.01)

    assert cancellation.reason is ClientDisconnected
