"""A client that leaves stops the model server within a second, and pays for what was produced."""

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

# The promise is a second; a busy machine gets a little more before the test calls it broken.
PROMISED_SECONDS = 1.0

PATHS = ["/api/generate", "/generate", "/api/chat"]


def upstream_path(path: str) -> str:
    return "/api/chat" if "chat" in path else "/api/generate"


def body(path: str, *, stream: bool) -> dict[str, object]:
    if "chat" in path:
        asked: dict[str, object] = {"messages": [{"role": "user", "content": "hello there"}]}
    else:
        asked = {"prompt": "hello there"}
    return {"model": "llama3", "stream": stream, **asked}


def leave(
    gateway: RunningGateway, alice: Caller, path: str, *, stream: bool, after: int
) -> Received:
    """Ask, read some lines, leave; return what the model server saw."""
    with gateway.client() as client:
        client.post(path, body(path, stream=stream), key=alice.secret)
        [asked] = gateway.ollama.wait_for(1, upstream_path(path))
        if after:
            client.read_head()
        for _ in range(after):
            client.read_line()
        time.sleep(0.1)
        left_at = time.monotonic()
    assert asked.left.wait(PROMISED_SECONDS), "the model server still works for nobody"
    assert asked.left_at is not None and asked.left_at - left_at < PROMISED_SECONDS
    return asked


@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
@pytest.mark.parametrize("path", PATHS)
def test_who_leaves_before_the_first_line_pays_nothing(
    gateway: RunningGateway, alice: Caller, path: str, stream: bool
) -> None:
    gateway.ollama.answer(upstream_path(path), Stall())

    leave(gateway, alice, path, stream=stream, after=0)

    row = usage_row()
    assert (row.outcome, row.billed, row.cost) == ("client_left", False, Decimal(0))
    assert Hold.objects.get().state == "released"


@pytest.mark.parametrize("path", PATHS)
def test_who_leaves_in_mid_stream_pays_for_what_was_produced(
    gateway: RunningGateway, alice: Caller, path: str
) -> None:
    upstream = upstream_path(path)
    gateway.ollama.answer(upstream, tokens("abc", path=upstream, done=False), Stall())

    leave(gateway, alice, path, stream=True, after=3)

    row = usage_row()
    assert (row.outcome, row.billed, row.count_source) == ("client_left", True, "counted")
    assert (row.completion_tokens, row.prompt_tokens) == (3, 17 if "chat" in path else 13)
    assert Hold.objects.get().state == "settled"


def test_who_leaves_an_answer_without_a_length_pays_for_what_was_produced(
    gateway: RunningGateway, alice: Caller
) -> None:
    """Only the close ends it, so that our own break-off reads like its end."""
    endless = Status(200, chunked=False)
    gateway.ollama.answer("/api/generate", endless, tokens("abc", done=False), Stall())

    leave(gateway, alice, "/api/generate", stream=True, after=3)

    row = usage_row()
    assert (row.outcome, row.billed, row.completion_tokens) == ("client_left", True, 3)


def test_who_leaves_while_lines_still_come_stops_them(
    gateway: RunningGateway, alice: Caller
) -> None:
    pieces = ["word "] * 200
    gateway.ollama.answer("/api/generate", tokens(pieces, pause=0.02))

    asked = leave(gateway, alice, "/api/generate", stream=True, after=5)

    row = usage_row()
    assert 5 <= row.completion_tokens <= asked.lines_sent < 100


def test_who_leaves_a_whole_answer_half_written_pays_for_that_half(
    gateway: RunningGateway, alice: Caller
) -> None:
    gateway.ollama.answer("/api/generate", tokens("ab", done=False), Stall())

    leave(gateway, alice, "/generate", stream=False, after=0)

    row = usage_row()
    assert (row.outcome, row.billed, row.completion_tokens) == ("client_left", True, 2)


def test_a_connection_reset_counts_as_leaving(gateway: RunningGateway, alice: Caller) -> None:
    gateway.ollama.answer("/api/generate", Line({"response": "a", "done": False}), Stall())
    client = gateway.client()
    client.post("/api/generate", body("/api/generate", stream=True), key=alice.secret)
    [asked] = gateway.ollama.wait_for(1)
    client.read_head()

    client.reset()

    assert asked.left.wait(PROMISED_SECONDS)
    assert usage_row().outcome == "client_left"


def test_a_client_that_stays_through_silence_gets_all_of_it(
    gateway: RunningGateway, alice: Caller
) -> None:
    gateway.ollama.answer("/api/generate", Sleep(1.2), tokens("ab"))

    with gateway.client() as client:
        client.post("/api/generate", body("/api/generate", stream=True), key=alice.secret)
        lines = client.read_all().splitlines()

    assert json.loads(lines[-1])["done"] is True
    assert usage_row().outcome == "complete"


def test_the_books_balance_when_everybody_has_left(gateway: RunningGateway, alice: Caller) -> None:
    for after in (0, 1, 2):
        gateway.ollama.answer("/api/generate", tokens("abc", done=False), Stall())
        leave_one(gateway, alice, after)

    eventually(lambda: not Hold.objects.filter(state="open").exists())
    assert not any(found for _check, found in reconciliation.differences())
    assert alice.wallet.held == 0


def leave_one(gateway: RunningGateway, alice: Caller, after: int) -> None:
    before = len(gateway.ollama.requests)
    with gateway.client() as client:
        client.post("/api/generate", body("/api/generate", stream=True), key=alice.secret)
        asked = gateway.ollama.wait_for(before + 1)[-1]
        client.read_head()
        for _ in range(after):
            client.read_line()
    assert asked.left.wait(PROMISED_SECONDS)


# --- Leaving at a tool call -----------------------------------------------------------------------

# 4,000 bytes of arguments: 1,003 tokens by their bytes.
CALL = {"function": {"name": "save", "arguments": {"text": "x" * 3997}}}
COUNTED = 1003
SAID = [{"role": "user", "content": "hello there"}]
CALLERS: dict[str, dict[str, Any]] = {
    "/chat": {"messages": SAID},
    "/api/chat": {"messages": SAID},
    "/v1/chat/completions": {"messages": SAID},
    "/v1/responses": {"input": "hello there"},
    "/v1/messages": {"messages": SAID, "max_tokens": 2048},
}


def leave_at_the_call(gateway: RunningGateway, alice: Caller, path: str) -> Received:
    """Ask, read until the call has come, leave; return what the model server saw."""
    with gateway.client() as client:
        fields = {"model": "llama3", "stream": True, **CALLERS[path]}
        client.post(path, fields, key=alice.secret)
        [asked] = gateway.ollama.wait_for(1, "/api/chat")
        client.read_head()
        while b"xxxx" not in (client.read_line() or b""):
            pass
    return asked


@pytest.mark.parametrize("path", CALLERS)
def test_who_leaves_at_a_tool_call_pays_by_the_counts_that_come_right_after(
    gateway: RunningGateway, alice: Caller, path: str
) -> None:
    called = tokens([], path="/api/chat", tool_calls=[CALL], prompt=180, count=1500, pause=0.03)
    gateway.ollama.answer("/api/chat", called)

    leave_at_the_call(gateway, alice, path)

    row = usage_row()
    assert (row.billed, row.count_source) == (True, "upstream")
    assert (row.prompt_tokens, row.completion_tokens) == (180, 1500)


@pytest.mark.parametrize("path", CALLERS)
def test_who_leaves_at_a_tool_call_without_counts_pays_for_its_bytes(
    gateway: RunningGateway, alice: Caller, path: str
) -> None:
    called = tokens([], path="/api/chat", tool_calls=[CALL], done=False)
    gateway.ollama.answer("/api/chat", called, Stall())

    asked = leave_at_the_call(gateway, alice, path)

    assert asked.left.wait(PROMISED_SECONDS), "the model server still works for nobody"
    row = usage_row()
    assert (row.outcome, row.billed, row.count_source) == ("client_left", True, "counted")
    assert (row.prompt_tokens, row.completion_tokens) == (17, COUNTED)
