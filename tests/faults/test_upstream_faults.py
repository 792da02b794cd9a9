"""The model server exits, stalls, dribbles and sends too much: no truncated response looks
complete, and the bill stays right.

Faults of HTTP are in test_upstream_http.py, a cut at every byte in test_upstream_cuts.py.
"""

import json
from typing import Any

import pytest

from billing.models import Hold, TokenUsage
from tests.fakes.proxy import Cut, Slicer
from tests.fakes.script import (
    Close,
    Line,
    Raw,
    Reset,
    Sleep,
    Stall,
    Status,
    Wire,
    dribble,
    error_line,
    reply,
    slices,
    tokens,
)
from tests.faults.conftest import (
    BOTH_WAYS,
    RunningGateway,
    ask,
    costs_nothing,
    figure,
    growing_less_than,
    in_parallel,
    is_broken_off,
    is_error,
    percentile,
    the_row,
)

GENERATE = "/api/generate"
FIRST_LINE, SILENCE, TOTAL = 3.0, 2.0, 5.0
# How early and how late a passed deadline may be seen by a client on a busy machine.
EARLY, LATE = 0.3, 8.0
pytestmark = BOTH_WAYS
GOOD_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\n"


# --- Before the first line ----------------------------------------------------------------------


def test_a_model_server_that_is_down_gives_503_at_once(gateway: RunningGateway, key: str) -> None:
    gateway.proxy.down()

    found = [ask(gateway, key) for _ in range(5 if gateway.nginx else 50)]

    times = sorted(seen.seconds for seen in found)
    p50, p99 = percentile(times, 50), percentile(times, 99)
    figure(
        f"time to 503 when refused, {gateway.way}: p50 {p50 * 1000:.0f} ms, p99 {p99 * 1000:.0f} ms"
    )
    assert all(is_error(seen, 503, "upstream_down") for seen in found)
    assert all(int(seen.headers["retry-after"]) > 0 for seen in found)
    assert p50 < 2 and p99 < LATE
    assert not TokenUsage.objects.exists() and not Hold.objects.exists()


def test_silence_gives_504_at_the_deadline_of_the_first_line(
    gateway: RunningGateway, key: str
) -> None:
    gateway.ollama.answer(GENERATE, Stall())

    seen = ask(gateway, key)

    assert is_error(seen, 504, "upstream_stalled")
    assert FIRST_LINE - EARLY < seen.seconds < FIRST_LINE + LATE
    assert gateway.ollama.requests[0].left.wait(10), "the upstream connection was not closed"
    assert costs_nothing("upstream_stalled")


def test_a_slow_status_line_is_cut_at_the_same_deadline(gateway: RunningGateway, key: str) -> None:
    gateway.ollama.answer(GENERATE, dribble(GOOD_HEAD, pause=0.3))

    seen = ask(gateway, key)

    assert is_error(seen, 504, "upstream_stalled")
    assert FIRST_LINE - EARLY < seen.seconds < FIRST_LINE + LATE
    assert costs_nothing("upstream_stalled")


@pytest.mark.parametrize(
    "body",
    [tokens(["x"] * 100, pause=0.3), slices(b'{"response": "' + b"x" * 100, 1, pause=0.3)],
    ids=["lines", "bytes of one line"],
)
def test_a_slow_endless_response_is_cut_at_a_deadline(
    gateway: RunningGateway, key: str, body: list[Any]
) -> None:
    gateway.ollama.answer(GENERATE, tokens("a", done=False), body)

    seen = ask(gateway, key)

    assert is_broken_off(seen, "answer_too_long") and seen.seconds < TOTAL + LATE
    assert seen.seconds > TOTAL - EARLY, "another deadline was quicker"
    assert (the_row().outcome, the_row().billed) == ("answer_too_long", True)
    assert the_row().completion_tokens >= 1


REFUSALS = {
    "500": (reply({"error": "CUDA error at /srv/models"}, 500), 502),
    "500, not JSON": (reply("panic: /srv/models", 500), 502),
    "400": (reply({"error": "bad option /srv/models"}, 400), 400),
    "404": (reply({"error": "model 'llama3' not found, see /srv/models"}, 404), 404),
    "502": (reply("<html>/srv/models</html>", 502), 502),
    "204": ([Status(204)], 502),
    "299": (reply("/srv/models", 299), 502),
}


@pytest.mark.parametrize(("refusal", "status"), REFUSALS.values(), ids=REFUSALS)
def test_a_refusal_keeps_its_status_and_reveals_nothing(
    gateway: RunningGateway, key: str, refusal: list[Any], status: int
) -> None:
    gateway.ollama.answer(GENERATE, refusal)

    seen = ask(gateway, key)

    assert seen.status == status and "/srv" not in str(seen.error)
    assert costs_nothing("upstream_refused", "upstream_broke", "invalid_request")


def test_a_busy_model_server_is_not_asked_again(gateway: RunningGateway, key: str) -> None:
    gateway.ollama.answer(GENERATE, reply({"error": "server busy, please try again"}, 503))

    seen = ask(gateway, key)

    assert is_error(seen, 503, "upstream_busy") and int(seen.headers["retry-after"]) > 0
    assert len(gateway.ollama.requests) == 1
    assert costs_nothing("upstream_refused")


# --- In mid-stream ------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
@pytest.mark.parametrize("lines", range(6))
def test_an_error_line_ends_a_response_as_failed(
    gateway: RunningGateway, key: str, lines: int, stream: bool
) -> None:
    gateway.ollama.answer(GENERATE, tokens("x" * lines, done=False), error_line("out of memory"))

    seen = ask(gateway, key, stream=stream)

    status = 200 if stream and lines else 502
    assert is_error(seen, status, "upstream_broke") and seen.ended_properly
    assert costs_nothing("upstream_broke", "upstream_refused")


@pytest.mark.parametrize("reset", [False, True], ids=["closed", "reset"])
@pytest.mark.parametrize("at", [0, 10, 200, 420, 600])
def test_a_cut_on_the_wire_never_looks_complete(
    gateway: RunningGateway, key: str, at: int, reset: bool
) -> None:
    gateway.ollama.answer(GENERATE, tokens("abcdefgh", pause=0.01))
    gateway.proxy.harm(Cut(at, reset=reset))

    seen = ask(gateway, key)

    assert seen.error and not seen.looks_complete
    assert costs_nothing("upstream_broke", "upstream_refused")


BROKEN_ENDS = {
    "the end between two lines": [Close()],
    "half a last line": [Raw(b'{"done":tr'), Close()],
    "half a last line, properly ended": [Raw(b'{"done":tr')],
    "not JSON": [Line(b"<html>")],
    "not UTF-8": [Line(b'{"response":"\xc3\x28","done":true}')],
    "NaN": [Line(b'{"response":NaN}')],
    "nested without end": [Line(b'{"response":' + b"[" * 100_000)],
    "done is text": [Line(b'{"response":"","done":"true"}'), Close()],
    "a chunk size that is none": [Wire(b"zz\r\n\r\n")],
    "a chunk longer than what comes": [Wire(b"ffff\r\nx")],
}


@pytest.mark.parametrize("ending", BROKEN_ENDS.values(), ids=BROKEN_ENDS)
@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
def test_a_stream_without_its_last_line_is_broken(
    gateway: RunningGateway, key: str, ending: list[Any], stream: bool
) -> None:
    gateway.ollama.answer(GENERATE, tokens("ab", done=False), ending)

    seen = ask(gateway, key, stream=stream)

    assert seen.error["code"] == "upstream_broke" and not seen.looks_complete
    assert b"<html>" not in seen.body and b"\xc3" not in seen.body
    assert costs_nothing("upstream_broke")


@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
def test_a_clean_end_without_a_last_line_completes_the_response(
    gateway: RunningGateway, key: str, stream: bool
) -> None:
    gateway.ollama.answer(GENERATE, tokens("ab", done=False))

    seen = ask(gateway, key, stream=stream)

    assert seen.looks_complete and json.loads(seen.lines[-1])["done_reason"] == "length"
    assert (the_row().outcome, the_row().billed) == ("complete", True)
    assert (the_row().completion_tokens, the_row().count_source) == (2, "counted")


def test_a_last_line_without_its_newline_is_complete(gateway: RunningGateway, key: str) -> None:
    last = json.dumps({"response": "", "done": True, "prompt_eval_count": 3, "eval_count": 7})
    gateway.ollama.answer(GENERATE, tokens("a", done=False), Raw(last.encode()))

    seen = ask(gateway, key)

    assert seen.looks_complete
    row = the_row()
    assert (row.outcome, row.billed) == ("complete", True)
    assert (row.prompt_tokens, row.completion_tokens) == (3, 7), "we counted one"


ENDLESS = [Raw(b"x" * 65_536)] * 480  # 30 MB


@pytest.mark.parametrize("begun", ["", "a"], ids=["first line", "in mid-stream"])
def test_a_line_of_ten_megabytes_is_cut_and_memory_stays_flat(
    gateway: RunningGateway, key: str, begun: str
) -> None:
    gateway.ollama.answer(GENERATE, tokens(begun, done=False), ENDLESS)
    ask(gateway, key)

    with growing_less_than(40, gateway, "four lines of 30 MB at once"):
        found = in_parallel(range(4), lambda _: ask(gateway, key))

    assert all(seen.error["code"] == "upstream_broke" for seen in found)
    assert not any(seen.looks_complete for seen in found)
    assert gateway.ollama.requests[-1].left.wait(10), "the rest of the line was waited for"


@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
@pytest.mark.parametrize("more", [tokens("b", count=900), [Line(b"<html>")], [Sleep(3), Reset()]])
def test_bytes_after_the_last_line_are_dropped(
    gateway: RunningGateway, key: str, more: list[Any], stream: bool
) -> None:
    gateway.ollama.answer(GENERATE, tokens("ab"), more)

    seen = ask(gateway, key, stream=stream)

    assert seen.looks_complete and seen.ended_properly and seen.seconds < 2
    assert b"".join(json.loads(line)["response"].encode() for line in seen.lines) == b"ab"
    assert (the_row().outcome, the_row().completion_tokens) == ("complete", 2)


@pytest.mark.parametrize("size", [1, 7, 64])
def test_the_response_arrives_whole_however_it_is_sliced(
    gateway: RunningGateway, key: str, size: int
) -> None:
    pieces = ["Grüße", " \U0001f600", "\r", " \u2028", "\\n", '"']
    gateway.ollama.answer(GENERATE, tokens(pieces))
    gateway.proxy.harm(Slicer(size))

    seen = ask(gateway, key)

    assert [json.loads(line)["response"] for line in seen.body.split(b"\n")[:-2]] == pieces
    assert seen.looks_complete
