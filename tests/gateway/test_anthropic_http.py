"""`/v1/messages` over HTTP."""

import json
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import pytest

from billing.models import Hold, TokenUsage
from tests.fakes.ollama import FakeOllama
from tests.fakes.script import Close, Wire, error_line, rendered, reply, tokens
from tests.harness.anthropic import (
    CALL,
    DROPPED,
    HELLO,
    events,
    names,
)
from tests.harness.callers import Caller

# --- Over HTTP ------------------------------------------------------------------------------------


def ask(caller: Caller, **asked: Any) -> Any:
    body = {"model": "llama3", "max_tokens": 64, "messages": HELLO, **asked}
    return caller.post("/v1/messages", body)


def body_of(answer: Any) -> bytes:
    return b"".join(answer.streaming_content) if answer.streaming else answer.content


@pytest.mark.usefixtures("priced")
def test_the_answer_bears_its_request_id_under_both_names(
    alice: Caller, ollama: FakeOllama
) -> None:
    good, bad = ask(alice), ask(alice, max_tokens=0)

    row = TokenUsage.objects.get()
    assert good["request-id"] == good["x-request-id"] == str(row.request_id)
    assert good.json()["id"] == f"msg_{row.request_id.hex}"
    assert bad["request-id"] == bad.json()["request_id"] != good["request-id"]


@pytest.mark.usefixtures("priced")
def test_the_key_may_come_in_anthropics_header(alice: Caller, ollama: FakeOllama) -> None:
    body = {"model": "llama3", "max_tokens": 5, "messages": HELLO}
    headers = {"x-api-key": alice.secret, "anthropic-version": "2023-06-01"}

    answer = alice.client.post(
        "/v1/messages?beta=true", body, content_type="application/json", headers=headers
    )
    assert answer.status_code == 200 and answer.json()["usage"]["output_tokens"] == 5


@pytest.mark.usefixtures("priced")
def test_nothing_of_the_clients_own_goes_upstream_unread(alice: Caller, ollama: FakeOllama) -> None:
    ask(alice, system="Be brief.", **DROPPED)

    sent = ollama.requests[-1].json
    assert set(sent) == {"model", "messages", "options", "stream"}
    assert sent["options"] == {"num_predict": 64} and sent["stream"] is True


@pytest.mark.usefixtures("priced")
def test_a_limit_beyond_ours_is_clamped(alice: Caller, ollama: FakeOllama, settings: Any) -> None:
    settings.MAX_COMPLETION_TOKENS = 3

    answer = ask(alice, max_tokens=32_000).json()
    assert ollama.requests[-1].json["options"]["num_predict"] == 3
    assert (answer["stop_reason"], answer["usage"]["output_tokens"]) == ("max_tokens", 3)


@pytest.mark.usefixtures("priced")
@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
def test_the_usage_told_is_the_usage_billed(
    alice: Caller, ollama: FakeOllama, stream: bool
) -> None:
    answer = body_of(ask(alice, stream=stream))
    told = events(answer)[-2]["usage"] if stream else json.loads(answer)["usage"]

    row = TokenUsage.objects.get()
    assert (told["input_tokens"], told["output_tokens"]) == (2, 9)
    assert (row.prompt_tokens, row.completion_tokens) == (2, 9)
    assert Decimal(told["cost"]) == row.cost > 0
    assert isinstance(told["cost"], str) and told["currency"] == "USD"


@pytest.mark.usefixtures("priced")
@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
def test_an_answer_that_breaks_is_an_error(alice: Caller, ollama: FakeOllama, stream: bool) -> None:
    broken = error_line("CUDA error at /srv/ollama")
    ollama.answer("/api/chat", tokens("ab", path="/api/chat", done=False), broken)

    answer = ask(alice, stream=stream)
    body = body_of(answer)

    last = events(body)[-1] if stream else json.loads(body)
    assert answer.status_code == (200 if stream else 502)
    assert last["error"]["type"] == "api_error" and b"/srv" not in body
    assert last["request_id"] == answer["request-id"] and b"message_stop" not in body
    assert TokenUsage.objects.get().outcome == "upstream_broke"


@pytest.mark.usefixtures("priced")
def test_what_the_model_cannot_do_is_said(alice: Caller, ollama: FakeOllama) -> None:
    ollama.answer("/api/chat", reply({"error": "llama3 does not support thinking"}, 400))

    answer = ask(alice, thinking={"type": "enabled", "budget_tokens": 1024})
    assert answer.status_code == 400
    assert answer.json()["error"]["message"] == "model 'llama3:latest' does not support thinking"


def test_tokens_are_not_counted_beforehand_and_other_addresses_are_not_there(
    alice: Caller, ollama: FakeOllama
) -> None:
    for path in ("/v1/messages/count_tokens", "/v1/messages/batches", "/v1/messages/"):
        answer = alice.post(path, model="llama3", messages=HELLO)
        assert answer.status_code == 404 and answer["request-id"]
        assert answer.json()["error"]["type"] == "not_found_error"
    assert ollama.requests == []


@pytest.mark.parametrize(
    "asked",
    [
        {"MESSAGES": []},
        {"messages": [{"role": "user", "content": [{"type": "document"}]}]},
        {"tools": [{"type": "bash_20250124", "name": "x"}]},
        {"top_k": "many"},
        {"stop_sequences": ["x"] * 9},
    ],
)
@pytest.mark.usefixtures("priced")
def test_a_refused_request_reaches_nobody_and_holds_nothing(
    alice: Caller, ollama: FakeOllama, asked: dict[str, Any]
) -> None:
    answer = ask(alice, **asked)

    assert answer.status_code == 400 and answer.json()["error"]["type"] == "invalid_request_error"
    assert ollama.requests == [] and not Hold.objects.exists()


# --- Wherever it breaks ---------------------------------------------------------------------------

REPLY = rendered(tokens(["Hel", "lo"], path="/api/chat", thinking=["Hm"], tool_calls=[CALL]))
# From here on the last line is whole, and only its frame is missing.
LAST_LINE_ENDS = REPLY.rindex(b"}") + 1


def offsets() -> Iterator[int]:
    """Every byte of the last line, where it matters most, and every few before."""
    last_line = REPLY.rindex(b'{"model"')
    yield from range(0, last_line, 7)
    yield from range(last_line, LAST_LINE_ENDS)


@pytest.mark.usefixtures("priced")
def test_an_answer_cut_at_any_byte_never_looks_complete(alice: Caller, ollama: FakeOllama) -> None:
    for at in offsets():
        ollama.answer("/api/chat", Wire(REPLY[:at]), Close())
        answer = ask(alice, stream=True)
        body = body_of(answer)

        assert b"message_stop" not in body and b"message_delta" not in body, at
        error = events(body)[-1] if answer.status_code == 200 else json.loads(body)
        assert error["type"] == "error", at
    assert alice.wallet.spent == 0 and not Hold.objects.filter(state="open").exists()


@pytest.mark.usefixtures("priced")
def test_an_answer_cut_after_its_last_line_is_complete(alice: Caller, ollama: FakeOllama) -> None:
    ollama.answer("/api/chat", Wire(REPLY))

    assert names(body_of(ask(alice, stream=True)))[-1] == "message_stop"
