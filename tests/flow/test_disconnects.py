"""A disconnect stops the model server within a second. The tokens produced are billed."""

import json
import time
from decimal import Decimal
from typing import Any

import pytest

from billing import reconciliation
from billing.models import Hold
from tests.fakes.ollama import Received
from tests.fakes.script import Line, Sleep, Stall, Status, tokens
from tests.harness.callers import Caller
from tests.harness.gateway import RunningGateway, eventually, usage_row

pytestmark = pytest.mark.usefixtures("priced")

# docs/promises.md, P6.
PROMISED_SECONDS = 1.0

PATHS = ["/api/generate", "/generate", "/api/chat"]


def upstream_path(path: str) -> str:
    return "/api/chat" if "chat" in path else "/api/generate"


def body(path: str, *, stream: bool) -> dict[str, object]:
    if "chat" in path:
        prompt: dict[str, object] = {"messages": [{"role": "user", "content": "hello there"}]}
    else:
        prompt = {"prompt": "hello there"}
    return {"model": "llama3", "stream": stream, **prompt}


def disconnect(
    gateway: RunningGateway, alice: Caller, path: str, *, stream: bool, after: int
) -> Received:
    """Send a request, read some lines and disconnect; return what the model server received."""
    with gateway.client() as client:
        client.post(path, body(path, stream=stream), key=alice.secret)
        [received] = gateway.ollama.wait_for(1, upstream_path(path))
        if after:
            client.read_head()
        for _ in range(after):
            client.read_line()
        time.sleep(0.1)
        left_at = time.monotonic()
    assert received.left.wait(PROMISED_SECONDS), "the model server did not notice the disconnect"
    assert received.left_at is not None and received.left_at - left_at < PROMISED_SECONDS
    return received


@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
@pytest.mark.parametrize("path", PATHS)
def test_a_disconnect_before_the_first_chunk_is_not_billed(
    gateway: RunningGateway, alice: Caller, path: str, stream: bool
) -> None:
    gateway.ollama.answer(upstream_path(path), Stall())

    disconnect(gateway, alice, path, stream=stream, after=0)

    row = usage_row()
    assert (row.outcome, row.billed, row.cost) == ("client_left", False, Decimal(0))
    assert Hold.objects.get().state == "released"


@pytest.mark.parametrize("path", PATHS)
def test_a_disconnect_in_mid_stream_is_billed_for_the_tokens_produced(
    gateway: RunningGateway, alice: Caller, path: str
) -> None:
    upstream = upstream_path(path)
    gateway.ollama.answer(upstream, tokens("abc", path=upstream, done=False), Stall())

    disconnect(gateway, alice, path, stream=True, after=3)

    row = usage_row()
    assert (row.outcome, row.billed, row.count_source) == ("client_left", True, "counted")
    assert (row.completion_tokens, row.prompt_tokens) == (3, 17 if "chat" in path else 13)
    assert Hold.objects.get().state == "settled"


def test_a_disconnect_is_billed_if_upstream_ends_responses_by_closing(
    gateway: RunningGateway, alice: Caller
) -> None:
    """The gateway's own cancellation must not look like the end of the response."""
    until_closed = Status(200, chunked=False)
    gateway.ollama.answer("/api/generate", until_closed, tokens("abc", done=False), Stall())

    disconnect(gateway, alice, "/api/generate", stream=True, after=3)

    row = usage_row()
    assert (row.outcome, row.billed, row.completion_tokens) == ("client_left", True, 3)


def test_a_disconnect_stops_a_model_that_is_writing(gateway: RunningGateway, alice: Caller) -> None:
    words = ["word "] * 200
    gateway.ollama.answer("/api/generate", tokens(words, pause=0.02))

    received = disconnect(gateway, alice, "/api/generate", stream=True, after=5)

    row = usage_row()
    assert 5 <= row.completion_tokens <= received.lines_sent < 100


def test_a_disconnect_from_a_response_that_is_not_streamed_is_billed(
    gateway: RunningGateway, alice: Caller
) -> None:
    gateway.ollama.answer("/api/generate", tokens("ab", done=False), Stall())

    disconnect(gateway, alice, "/generate", stream=False, after=0)

    row = usage_row()
    assert (row.outcome, row.billed, row.completion_tokens) == ("client_left", True, 2)


def test_a_connection_reset_is_a_disconnect(gateway: RunningGateway, alice: Caller) -> None:
    gateway.ollama.answer("/api/generate", Line({"response": "a", "done": False}), Stall())
    client = gateway.client()
    client.post("/api/generate", body("/api/generate", stream=True), key=alice.secret)
    [received] = gateway.ollama.wait_for(1)
    client.read_head()

    client.reset()

    assert received.left.wait(PROMISED_SECONDS)
    assert usage_row().outcome == "client_left"


def test_a_client_that_waits_gets_the_complete_response(
    gateway: RunningGateway, alice: Caller
) -> None:
    gateway.ollama.answer("/api/generate", Sleep(1.2), tokens("ab"))

    with gateway.client() as client:
        client.post("/api/generate", body("/api/generate", stream=True), key=alice.secret)
        lines = client.read_all().splitlines()

    assert json.loads(lines[-1])["done"] is True
    assert usage_row().outcome == "complete"


def test_the_ledger_balances_after_disconnects(gateway: RunningGateway, alice: Caller) -> None:
    for after in (0, 1, 2):
        gateway.ollama.answer("/api/generate", tokens("abc", done=False), Stall())
        disconnect_once(gateway, alice, after)

    eventually(lambda: not Hold.objects.filter(state="open").exists())
    assert not any(rows for _check, rows in reconciliation.differences())
    assert alice.wallet.held == 0


def disconnect_once(gateway: RunningGateway, alice: Caller, after: int) -> None:
    before = len(gateway.ollama.requests)
    with gateway.client() as client:
        client.post("/api/generate", body("/api/generate", stream=True), key=alice.secret)
        received = gateway.ollama.wait_for(before + 1)[-1]
        client.read_head()
        for _ in range(after):
            client.read_line()
    assert received.left.wait(PROMISED_SECONDS)


# --- Disconnects at a tool call -------------------------------------------------------------------

# 4,000 bytes of arguments count as 1,003 tokens.
CALL = {"function": {"name": "save", "arguments": {"text": "x" * 3997}}}
CALL_TOKENS = 1003
MESSAGES = [{"role": "user", "content": "hello there"}]
REQUESTS: dict[str, dict[str, Any]] = {
    "/chat": {"messages": MESSAGES},
    "/api/chat": {"messages": MESSAGES},
    "/v1/chat/completions": {"messages": MESSAGES},
    "/v1/responses": {"input": "hello there"},
    "/v1/messages": {"messages": MESSAGES, "max_tokens": 2048},
}


def disconnect_at_tool_call(gateway: RunningGateway, alice: Caller, path: str) -> Received:
    """Disconnect once the tool call has arrived; return what the model server received."""
    with gateway.client() as client:
        fields = {"model": "llama3", "stream": True, **REQUESTS[path]}
        client.post(path, fields, key=alice.secret)
        [received] = gateway.ollama.wait_for(1, "/api/chat")
        client.read_head()
        while b"xxxx" not in (client.read_line() or b""):
            pass
    return received


@pytest.mark.parametrize("path", REQUESTS)
def test_a_disconnect_at_a_tool_call_is_billed_by_counts_that_arrive_in_time(
    gateway: RunningGateway, alice: Caller, path: str
) -> None:
    script = tokens([], path="/api/chat", tool_calls=[CALL], prompt=180, count=1500, pause=0.03)
    gateway.ollama.answer("/api/chat", script)

    disconnect_at_tool_call(gateway, alice, path)

    row = usage_row()
    assert (row.billed, row.count_source) == (True, "upstream")
    assert (row.prompt_tokens, row.completion_tokens) == (180, 1500)


@pytest.mark.parametrize("path", REQUESTS)
def test_a_disconnect_at_a_tool_call_without_counts_is_billed_by_its_size(
    gateway: RunningGateway, alice: Caller, path: str
) -> None:
    script = tokens([], path="/api/chat", tool_calls=[CALL], done=False)
    gateway.ollama.answer("/api/chat", script, Stall())

    received = disconnect_at_tool_call(gateway, alice, path)

    assert received.left.wait(PROMISED_SECONDS), "the model server did not notice the disconnect"
    row = usage_row()
    assert (row.outcome, row.billed, row.count_source) == ("client_left", True, "counted")
    assert (row.prompt_tokens, row.completion_tokens) == (17, CALL_TOKENS)
