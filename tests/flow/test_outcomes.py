"""Every outcome of a response closes its hold, writes one usage row and sends the right bytes."""

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

TEXT = "Hello"
CHUNKS = ["Hel", "lo"]


@pytest.fixture(autouse=True)
def ledger_balances(db: None) -> Any:
    """After every test the ledger balances and nothing is held."""
    yield
    assert not Hold.objects.filter(state="open").exists()
    assert not any(rows for _check, rows in reconciliation.differences())


def send(alice: Caller, *, stream: bool, **fields: Any) -> tuple[Any, list[dict[str, Any]]]:
    """Send a request to Ollama's API; return the response and the objects in its body."""
    response = alice.post(
        "/api/generate", model="llama3", prompt="hello there", stream=stream, **fields
    )
    body = b"".join(response.streaming_content) if response.streaming else response.content
    return response, [json.loads(line) for line in body.splitlines()]


def row() -> TokenUsage:
    return TokenUsage.objects.get()


# --- Complete responses ---------------------------------------------------------------------------


def test_a_streamed_response_ends_with_its_usage(alice: Caller, ollama: FakeOllama) -> None:
    ollama.answer("/api/generate", tokens(CHUNKS, prompt=7))

    response, lines = send(alice, stream=True)

    assert "".join(line["response"] for line in lines) == TEXT
    assert [line["done"] for line in lines] == [False, False, True]
    assert lines[-1]["usage"]["total_tokens"] == 9 and "usage" not in lines[0]
    assert str(row().request_id) == response["x-request-id"]


def test_a_response_is_the_same_streamed_or_not(alice: Caller, ollama: FakeOllama) -> None:
    ollama.answer("/api/generate", tokens(CHUNKS, prompt=7))

    _, streamed = send(alice, stream=True)
    _, [whole] = send(alice, stream=False)

    assert whole == {**streamed[-1], "response": TEXT}


def test_a_response_is_billed_before_its_last_chunk_is_sent(
    alice: Caller, ollama: FakeOllama
) -> None:
    ollama.answer("/api/generate", tokens(CHUNKS))
    response = alice.post("/api/generate", model="llama3", prompt="hi")

    rows_before = [TokenUsage.objects.exists() for _line in response.streaming_content]

    # Checked after each chunk: the row exists when the client has the last one.
    assert rows_before == [False, False, True]


def test_lines_after_the_last_chunk_are_ignored(alice: Caller, ollama: FakeOllama) -> None:
    ollama.answer("/api/generate", tokens(CHUNKS, count=2), tokens(CHUNKS, count=900))

    _, lines = send(alice, stream=True)

    assert len(lines) == 3 and row().completion_tokens == 2


def test_a_last_chunk_needs_no_newline(alice: Caller, ollama: FakeOllama) -> None:
    last = json.dumps({"response": "", "done": True, "prompt_eval_count": 3, "eval_count": 1})
    ollama.answer("/api/generate", tokens("a", done=False), Raw(last.encode()))

    _, lines = send(alice, stream=True)

    assert lines[-1]["done"] is True and row().outcome == "complete"


# --- Wrong counts ---------------------------------------------------------------------------------


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
def test_an_impossible_count_is_replaced(
    alice: Caller, ollama: FakeOllama, counts: dict[str, Any], expected: tuple[int, int, str]
) -> None:
    ollama.answer("/api/generate", tokens(CHUNKS, **counts))

    send(alice, stream=True, options={"num_predict": 16})

    assert (row().prompt_tokens, row().completion_tokens, row().count_source) == expected


@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
def test_a_model_that_exceeds_the_token_limit_is_truncated(
    alice: Caller, ollama: FakeOllama, stream: bool
) -> None:
    ollama.answer("/api/generate", tokens(["x"] * 500), Stall())

    _, lines = send(alice, stream=stream, options={"num_predict": 10})

    assert lines[-1]["done_reason"] == "length"
    assert lines[-1]["usage"]["completion_tokens"] == 10


# --- Interrupted responses ------------------------------------------------------------------------

INTERRUPTIONS = {
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


@pytest.mark.parametrize("interruption", INTERRUPTIONS.values(), ids=INTERRUPTIONS.keys())
@pytest.mark.parametrize("chunks", [0, 2])
def test_an_interrupted_stream_never_looks_complete_and_is_not_billed(
    alice: Caller, ollama: FakeOllama, settings: Any, chunks: int, interruption: list[Any]
) -> None:
    settings.UPSTREAM_FIRST_LINE_SECONDS = settings.UPSTREAM_SILENCE_SECONDS = 0.2
    ollama.answer("/api/generate", tokens(CHUNKS[:chunks], done=False), interruption)

    response, lines = send(alice, stream=True)

    assert response.status_code == (200 if chunks else 504 if interruption == [Stall()] else 502)
    assert len(lines) == chunks + 1 and set(lines[-1]) == {"error", "code", "request_id"}
    assert not any(line.get("done") for line in lines) and "/srv" not in str(lines)
    assert (row().billed, row().cost, alice.wallet.spent) == (False, Decimal(0), 0)
    assert Hold.objects.get().state == "released"


def test_an_empty_response_is_interrupted(alice: Caller, ollama: FakeOllama) -> None:
    ollama.answer("/api/generate", Status(200))

    response, [error] = send(alice, stream=True)

    assert (response.status_code, error["code"]) == (502, "upstream_broke")
    assert (row().outcome, row().billed) == ("upstream_broke", False)


@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
def test_a_chunked_body_that_ends_without_a_last_chunk_is_complete(
    alice: Caller, ollama: FakeOllama, stream: bool
) -> None:
    """Ollama ends a response that repeats itself like this."""
    ollama.answer("/api/generate", tokens(["go"] * 31, done=False))

    response, lines = send(alice, stream=stream)

    assert response.status_code == 200 and lines[-1]["done_reason"] == "length"
    assert "".join(line["response"] for line in lines) == "go" * 31
    assert lines[-1]["usage"]["completion_tokens"] == 31
    assert (row().outcome, row().billed, row().count_source) == ("complete", True, "counted")


def test_a_closed_body_without_a_last_chunk_is_interrupted(
    alice: Caller, ollama: FakeOllama
) -> None:
    ollama.answer("/api/generate", Status(200, chunked=False), tokens(CHUNKS, done=False))

    _, lines = send(alice, stream=True)

    assert lines[-1]["code"] == "upstream_broke" and row().outcome == "upstream_broke"


@pytest.mark.parametrize("interruption", INTERRUPTIONS.values(), ids=INTERRUPTIONS.keys())
def test_an_interrupted_response_that_is_not_streamed_is_an_error(
    alice: Caller, ollama: FakeOllama, settings: Any, interruption: list[Any]
) -> None:
    settings.UPSTREAM_FIRST_LINE_SECONDS = settings.UPSTREAM_SILENCE_SECONDS = 0.2
    ollama.answer("/api/generate", tokens(CHUNKS, done=False), interruption)

    response, [error] = send(alice, stream=False)

    assert response.status_code in (502, 504) and set(error) == {"error", "code", "request_id"}
    assert row().outcome in ("upstream_broke", "upstream_stalled")


@pytest.mark.parametrize("chunks", [FREE_BELOW - 1, FREE_BELOW])
@pytest.mark.parametrize("bills", [True, False])
@pytest.mark.parametrize(
    "end",
    # A reset discards data that was not read yet, so it waits.
    [[Sleep(0.2), Reset()], Close(), error_line("unexpected EOF")],
    ids=["reset", "closed", "crash"],
)
def test_an_interrupted_stream_is_billed_from_64_tokens_on(
    alice: Caller, ollama: FakeOllama, settings: Any, chunks: int, bills: bool, end: Any
) -> None:
    settings.BILL_INTERRUPTED = bills
    ollama.answer("/api/generate", tokens(["x"] * chunks, done=False), end)

    _, lines = send(alice, stream=True)

    assert lines[-1]["code"] == "upstream_broke" and row().outcome == "upstream_broke"
    assert (row().prompt_tokens, row().completion_tokens) == (13, chunks)
    assert row().billed is (bills and chunks >= FREE_BELOW)


def test_a_crash_of_the_model_server_is_logged_without_its_message(
    alice: Caller, ollama: FakeOllama, caplog: pytest.LogCaptureFixture
) -> None:
    ollama.answer("/api/generate", tokens(CHUNKS, done=False), error_line("unexpected EOF: SECRET"))

    send(alice, stream=True)

    assert "The model server failed: unexpected eof" in caplog.text and "SECRET" not in caplog.text


@pytest.mark.parametrize("bills", [True, False])
def test_an_invalid_request_in_mid_stream_is_billed_for_the_delivered_part(
    alice: Caller, ollama: FakeOllama, settings: Any, bills: bool
) -> None:
    settings.BILL_INTERRUPTED = bills
    ollama.answer("/api/generate", tokens(CHUNKS, done=False), error_line("something new"))

    _, lines = send(alice, stream=True)

    assert lines[-1]["code"] == "invalid_request"
    assert (row().outcome, row().billed) == ("invalid_request", bills)
    assert (row().prompt_tokens, row().completion_tokens) == (13, 2)


@pytest.mark.parametrize(
    ("end", "status"), [(Close(), 502), (error_line("something new"), 400)], ids=["closed", "line"]
)
def test_a_failed_response_that_is_not_streamed_is_not_billed(
    alice: Caller, ollama: FakeOllama, end: Any, status: int
) -> None:
    ollama.answer("/api/generate", tokens(["x"] * 200, done=False), end)

    response, _ = send(alice, stream=False)

    assert response.status_code == status
    assert (row().billed, row().cost, row().completion_tokens) == (False, Decimal(0), 200)


@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
def test_a_response_that_takes_too_long_is_ended_and_billed(
    alice: Caller, ollama: FakeOllama, settings: Any, stream: bool
) -> None:
    """Otherwise every slow response would be free."""
    settings.UPSTREAM_TOTAL_SECONDS = 0.3
    ollama.answer("/api/generate", tokens(["x"] * 400, pause=0.05))

    response, lines = send(alice, stream=stream)

    assert response.status_code == (200 if stream else 504)
    assert stream or response["x-should-retry"] == "false"
    assert lines[-1]["code"] == "answer_too_long" and "charged" in lines[-1]["error"]
    assert (row().outcome, row().billed, row().prompt_tokens) == ("answer_too_long", True, 13)
    assert 0 < row().completion_tokens < 100


def test_a_read_timeout_in_mid_stream_is_not_billed(
    alice: Caller, ollama: FakeOllama, settings: Any
) -> None:
    settings.UPSTREAM_SILENCE_SECONDS, settings.UPSTREAM_TOTAL_SECONDS = 0.2, 30
    ollama.answer("/api/generate", tokens(CHUNKS, done=False), Stall())

    _, lines = send(alice, stream=True)

    assert lines[-1]["code"] == "upstream_stalled"
    assert (row().outcome, row().billed) == ("upstream_stalled", False)


# --- Rejections -----------------------------------------------------------------------------------


def test_an_unreachable_model_server_is_a_503_with_retry_after(
    alice: Caller, ollama: FakeOllama
) -> None:
    ollama.down()

    response, [error] = send(alice, stream=True)

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
    ids=["unknown", "busy", "crashed", "unauthorised", "forbidden", "redirect"],
)
def test_a_rejection_is_not_billed_and_has_a_proper_status(
    alice: Caller, ollama: FakeOllama, refusal: list[Any], status: int
) -> None:
    ollama.answer("/api/generate", refusal)

    response, [error] = send(alice, stream=True)

    assert response.status_code == status and "runner" not in error["error"]
    assert len(ollama.requests) == 1, "a rejected request is not retried"
    outcome = "invalid_request" if status < 500 else "upstream_refused"
    assert (row().outcome, row().billed) == (outcome, False)


def test_an_unused_hold_is_deleted(
    alice: Caller, ollama: FakeOllama, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_args: Any, **_kwargs: Any) -> None:
        raise RuntimeError("an error with a secret in it")

    monkeypatch.setattr("gateway.views.inference.MeteredChunks", fail)

    response, [error] = send(alice, stream=True)

    assert response.status_code == 500 and "secret" not in str(error)
    assert not TokenUsage.objects.exists() and not Hold.objects.exists()
    assert alice.wallet.held == 0


def test_a_slow_first_chunk_is_awaited(alice: Caller, ollama: FakeOllama, settings: Any) -> None:
    settings.UPSTREAM_FIRST_LINE_SECONDS = 5
    ollama.answer("/api/generate", Sleep(0.6), tokens(CHUNKS))

    response, lines = send(alice, stream=True)

    assert response.status_code == 200 and lines[-1]["done"] is True
