"""Every way an answer can end leaves one ended hold, one usage row and the right bytes."""

import json
from decimal import Decimal
from typing import Any

import pytest

from billing import reconciliation
from billing.models import Hold, TokenUsage
from billing.pricing import FREE_BELOW
from tests.fakes.ollama import FakeOllama
from tests.fakes.script import (
    OMIT,
    Close,
    Line,
    Raw,
    Reset,
    Sleep,
    Stall,
    Status,
    error_line,
    reply,
    tokens,
)
from tests.harness.callers import Caller

pytestmark = pytest.mark.usefixtures("priced")

WHOLE_TEXT = "Hello"
PIECES = ["Hel", "lo"]


@pytest.fixture(autouse=True)
def books_balance(db: None) -> Any:
    """After every ending the books balance and nothing is held."""
    yield
    assert not Hold.objects.filter(state="open").exists()
    assert not any(found for _check, found in reconciliation.differences())


def ask(alice: Caller, *, stream: bool, **fields: Any) -> tuple[Any, list[dict[str, Any]]]:
    """Ask by Ollama's own API; return the response and the objects in its body."""
    response = alice.post(
        "/api/generate", model="llama3", prompt="hello there", stream=stream, **fields
    )
    body = b"".join(response.streaming_content) if response.streaming else response.content
    return response, [json.loads(line) for line in body.splitlines()]


def row() -> TokenUsage:
    return TokenUsage.objects.get()


# --- Good endings --------------------------------------------------------------------------------


def test_a_streamed_answer_ends_with_its_usage(alice: Caller, ollama: FakeOllama) -> None:
    ollama.answer("/api/generate", tokens(PIECES, prompt=7))

    response, lines = ask(alice, stream=True)

    assert "".join(line["response"] for line in lines) == WHOLE_TEXT
    assert [line["done"] for line in lines] == [False, False, True]
    assert lines[-1]["usage"]["total_tokens"] == 9 and "usage" not in lines[0]
    assert str(row().request_id) == response["x-request-id"]


def test_a_whole_answer_says_what_a_streamed_one_says(alice: Caller, ollama: FakeOllama) -> None:
    ollama.answer("/api/generate", tokens(PIECES, prompt=7))

    _, streamed = ask(alice, stream=True)
    _, [whole] = ask(alice, stream=False)

    assert whole == {**streamed[-1], "response": WHOLE_TEXT}


def test_an_answer_is_billed_before_its_last_line_is_sent(
    alice: Caller, ollama: FakeOllama
) -> None:
    ollama.answer("/api/generate", tokens(PIECES))
    response = alice.post("/api/generate", model="llama3", prompt="hi")

    rows_before = [TokenUsage.objects.exists() for _line in response.streaming_content]

    # Looked at when each line is in the client's hands: only the last finds its bill.
    assert rows_before == [False, False, True]


def test_what_follows_the_last_line_is_dropped(alice: Caller, ollama: FakeOllama) -> None:
    ollama.answer("/api/generate", tokens(PIECES, count=2), tokens(PIECES, count=900))

    _, lines = ask(alice, stream=True)

    assert len(lines) == 3 and row().completion_tokens == 2


def test_a_last_line_without_its_newline_is_whole(alice: Caller, ollama: FakeOllama) -> None:
    last = json.dumps({"response": "", "done": True, "prompt_eval_count": 3, "eval_count": 1})
    ollama.answer("/api/generate", tokens("a", done=False), Raw(last.encode()))

    _, lines = ask(alice, stream=True)

    assert lines[-1]["done"] is True and row().outcome == "complete"


# --- The model server lies -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ({"prompt": OMIT}, (13, 2, "estimated")),
        ({"count": OMIT}, (5, 2, "counted")),
        ({"count": -3}, (5, 2, "counted")),
        ({"count": "many"}, (5, 2, "counted")),
        ({"count": 10**6}, (5, 16, "counted")),
        ({"prompt": 10**15}, (13, 2, "estimated")),
        ({"prompt": 4000}, (4000, 2, "upstream")),
        ({"prompt": 100_000}, (299, 2, "counted")),
    ],
    ids=lambda value: str(value),
)
def test_a_count_that_cannot_be_is_replaced_by_ours(
    alice: Caller, ollama: FakeOllama, counts: dict[str, Any], expected: tuple[int, int, str]
) -> None:
    ollama.answer("/api/generate", tokens(PIECES, **counts))

    ask(alice, stream=True, options={"num_predict": 16})

    assert (row().prompt_tokens, row().completion_tokens, row().count_source) == expected


@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
def test_who_writes_beyond_the_limit_is_cut_short(
    alice: Caller, ollama: FakeOllama, stream: bool
) -> None:
    ollama.answer("/api/generate", tokens(["x"] * 500), Stall())

    _, lines = ask(alice, stream=stream, options={"num_predict": 10})

    assert lines[-1]["done_reason"] == "length"
    assert lines[-1]["usage"]["completion_tokens"] == 10


# --- Bad endings ---------------------------------------------------------------------------------

BROKEN = {
    "reset": [Reset()],
    "closed without a last chunk": [Close()],
    "half a last line": [Raw(b'{"done":tr'), Close()],
    "half a last line, well framed": [Raw(b'{"response":"","done":tru')],
    "not JSON": [Line(b"<html>")],
    "not an object": [Line(b"[1]")],
    "not UTF-8": [Line(b'{"response":"\xff\xfe"}')],
    "1e999": [Line(b'{"response":"","total_duration":1e999,"done":true}')],
    "an error line": [error_line("CUDA error: out of memory at /srv/ollama")],
    "silence": [Stall()],
}


@pytest.mark.parametrize("ending", BROKEN.values(), ids=BROKEN.keys())
@pytest.mark.parametrize("pieces", [0, 2])
def test_a_broken_stream_never_looks_complete_and_costs_nothing(
    alice: Caller, ollama: FakeOllama, settings: Any, pieces: int, ending: list[Any]
) -> None:
    settings.UPSTREAM_FIRST_LINE_SECONDS = settings.UPSTREAM_SILENCE_SECONDS = 0.2
    ollama.answer("/api/generate", tokens(PIECES[:pieces], done=False), ending)

    response, lines = ask(alice, stream=True)

    assert response.status_code == (200 if pieces else 504 if ending == [Stall()] else 502)
    assert len(lines) == pieces + 1 and set(lines[-1]) == {"error", "code", "request_id"}
    assert not any(line.get("done") for line in lines) and "/srv" not in str(lines)
    assert (row().billed, row().cost, alice.wallet.spent) == (False, Decimal(0), 0)
    assert Hold.objects.get().state == "released"


def test_an_end_before_anything_came_is_a_break(alice: Caller, ollama: FakeOllama) -> None:
    ollama.answer("/api/generate", Status(200))

    response, [error] = ask(alice, stream=True)

    assert (response.status_code, error["code"]) == (502, "upstream_broke")
    assert (row().outcome, row().billed) == ("upstream_broke", False)


@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
def test_a_proper_end_without_a_last_line_is_an_end(
    alice: Caller, ollama: FakeOllama, stream: bool
) -> None:
    """Ollama ends a response that repeats itself so."""
    ollama.answer("/api/generate", tokens(["go"] * 31, done=False))

    response, lines = ask(alice, stream=stream)

    assert response.status_code == 200 and lines[-1]["done_reason"] == "length"
    assert "".join(line["response"] for line in lines) == "go" * 31
    assert lines[-1]["usage"]["completion_tokens"] == 31
    assert (row().outcome, row().billed, row().count_source) == ("complete", True, "counted")


def test_where_only_the_close_ends_a_response_an_end_is_a_break(
    alice: Caller, ollama: FakeOllama
) -> None:
    ollama.answer("/api/generate", Status(200, chunked=False), tokens(PIECES, done=False))

    _, lines = ask(alice, stream=True)

    assert lines[-1]["code"] == "upstream_broke" and row().outcome == "upstream_broke"


@pytest.mark.parametrize("ending", BROKEN.values(), ids=BROKEN.keys())
def test_a_broken_whole_answer_is_an_error(
    alice: Caller, ollama: FakeOllama, settings: Any, ending: list[Any]
) -> None:
    settings.UPSTREAM_FIRST_LINE_SECONDS = settings.UPSTREAM_SILENCE_SECONDS = 0.2
    ollama.answer("/api/generate", tokens(PIECES, done=False), ending)

    response, [error] = ask(alice, stream=False)

    assert response.status_code in (502, 504) and set(error) == {"error", "code", "request_id"}
    assert row().outcome in ("upstream_broke", "upstream_stalled")


@pytest.mark.parametrize("pieces", [FREE_BELOW - 1, FREE_BELOW])
@pytest.mark.parametrize("bills", [True, False])
@pytest.mark.parametrize(
    "end",
    # A reset takes what was sent and not yet read with it; so it waits.
    [[Sleep(0.2), Reset()], Close(), error_line("unexpected EOF")],
    ids=["reset", "closed", "crash"],
)
def test_what_the_model_server_broke_off_is_billed_from_64_tokens_on(
    alice: Caller, ollama: FakeOllama, settings: Any, pieces: int, bills: bool, end: Any
) -> None:
    settings.BILL_INTERRUPTED = bills
    ollama.answer("/api/generate", tokens(["x"] * pieces, done=False), end)

    _, lines = ask(alice, stream=True)

    assert lines[-1]["code"] == "upstream_broke" and row().outcome == "upstream_broke"
    assert (row().prompt_tokens, row().completion_tokens) == (13, pieces)
    assert row().billed is (bills and pieces >= FREE_BELOW)


def test_a_crash_of_the_model_server_is_logged_without_its_text(
    alice: Caller, ollama: FakeOllama, caplog: pytest.LogCaptureFixture
) -> None:
    ollama.answer("/api/generate", tokens(PIECES, done=False), error_line("unexpected EOF: SECRET"))

    ask(alice, stream=True)

    assert "The model server failed: unexpected eof" in caplog.text and "SECRET" not in caplog.text


@pytest.mark.parametrize("bills", [True, False])
def test_a_client_fault_after_the_first_chunk_is_billed_for_what_was_delivered(
    alice: Caller, ollama: FakeOllama, settings: Any, bills: bool
) -> None:
    settings.BILL_INTERRUPTED = bills
    ollama.answer("/api/generate", tokens(PIECES, done=False), error_line("something new"))

    _, lines = ask(alice, stream=True)

    assert lines[-1]["code"] == "invalid_request"
    assert (row().outcome, row().billed) == ("invalid_request", bills)
    assert (row().prompt_tokens, row().completion_tokens) == (13, 2)


@pytest.mark.parametrize(
    ("end", "status"), [(Close(), 502), (error_line("something new"), 400)], ids=["closed", "line"]
)
def test_a_whole_response_that_fails_delivers_nothing_and_costs_nothing(
    alice: Caller, ollama: FakeOllama, end: Any, status: int
) -> None:
    ollama.answer("/api/generate", tokens(["x"] * 200, done=False), end)

    response, _ = ask(alice, stream=False)

    assert response.status_code == status
    assert (row().billed, row().cost, row().completion_tokens) == (False, Decimal(0), 200)


@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
def test_an_answer_longer_than_the_gateway_lets_one_take_is_cut_and_charged(
    alice: Caller, ollama: FakeOllama, settings: Any, stream: bool
) -> None:
    """Our limit, not the model server's fault: or every answer that takes long enough is free."""
    settings.UPSTREAM_TOTAL_SECONDS = 0.3
    ollama.answer("/api/generate", tokens(["x"] * 400, pause=0.05))

    response, lines = ask(alice, stream=stream)

    assert response.status_code == (200 if stream else 504)
    assert stream or response["x-should-retry"] == "false"
    assert lines[-1]["code"] == "answer_too_long" and "charged" in lines[-1]["error"]
    assert (row().outcome, row().billed, row().prompt_tokens) == ("answer_too_long", True, 13)
    assert 0 < row().completion_tokens < 100


def test_silence_in_mid_stream_costs_nothing_though_the_whole_has_a_limit(
    alice: Caller, ollama: FakeOllama, settings: Any
) -> None:
    settings.UPSTREAM_SILENCE_SECONDS, settings.UPSTREAM_TOTAL_SECONDS = 0.2, 30
    ollama.answer("/api/generate", tokens(PIECES, done=False), Stall())

    _, lines = ask(alice, stream=True)

    assert lines[-1]["code"] == "upstream_stalled"
    assert (row().outcome, row().billed) == ("upstream_stalled", False)


# --- Refusals ------------------------------------------------------------------------------------


def test_a_dead_model_server_is_a_503_that_says_when_to_come_back(
    alice: Caller, ollama: FakeOllama
) -> None:
    ollama.down()

    response, [error] = ask(alice, stream=True)

    assert (response.status_code, error["code"]) == (503, "upstream_down")
    assert int(response["Retry-After"]) > 0
    assert not TokenUsage.objects.exists() and not Hold.objects.exists()


@pytest.mark.parametrize(
    ("refusal", "status"),
    [
        (reply({"error": "model 'llama3:latest' not found"}, 404), 404),
        (reply({"error": "server busy, please try again"}, 503), 503),
        (reply({"error": "llama runner process has terminated"}, 500), 502),
        (reply({"error": "x"}, 401), 502),
        ([Status(403, {"Content-Length": "0"})], 502),
        ([Status(307, {"Location": "http://127.0.0.1:1/", "Content-Length": "0"})], 502),
    ],
    ids=["unknown", "busy", "crashed", "unauthorised", "refused host", "redirect"],
)
def test_a_refusal_costs_nothing_and_keeps_a_proper_status(
    alice: Caller, ollama: FakeOllama, refusal: list[Any], status: int
) -> None:
    ollama.answer("/api/generate", refusal)

    response, [error] = ask(alice, stream=True)

    assert response.status_code == status and "runner" not in error["error"]
    assert len(ollama.requests) == 1, "a refused request is not tried again"
    outcome = "invalid_request" if status < 500 else "upstream_refused"
    assert (row().outcome, row().billed) == (outcome, False)


def test_a_hold_that_no_answer_used_is_deleted(
    alice: Caller, ollama: FakeOllama, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_args: Any, **_kwargs: Any) -> None:
        raise RuntimeError("a bug of ours, with a secret in it")

    monkeypatch.setattr("gateway.views.inference.MeteredChunks", fail)

    response, [error] = ask(alice, stream=True)

    assert response.status_code == 500 and "secret" not in str(error)
    assert not TokenUsage.objects.exists() and not Hold.objects.exists()
    assert alice.wallet.held == 0


def test_a_slow_model_server_is_waited_for(
    alice: Caller, ollama: FakeOllama, settings: Any
) -> None:
    settings.UPSTREAM_FIRST_LINE_SECONDS = 5
    ollama.answer("/api/generate", Sleep(0.6), tokens(PIECES))

    response, lines = ask(alice, stream=True)

    assert response.status_code == 200 and lines[-1]["done"] is True
