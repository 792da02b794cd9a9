"""Interrupted, closed and slow streams with the `anthropic` client."""

import time
from typing import Any

import anthropic
import pytest

from billing import reconciliation
from tests.fakes.script import Reset, Sleep, Stall, error_line, tokens
from tests.flow.anthropic_sdk.calls import (
    BUSY,
    CHAT,
    KEEP_ALIVE,
    REQUEST,
    create,
    text_of,
)
from tests.harness.anthropic import events
from tests.harness.callers import Caller
from tests.harness.gateway import RunningGateway, usage_row

pytestmark = pytest.mark.usefixtures("priced")


@pytest.mark.parametrize(
    "interruption", [Reset(), error_line("CUDA error")], ids=["reset", "error line"]
)
def test_an_interrupted_stream_raises(
    client: anthropic.Anthropic, gateway: RunningGateway, interruption: Any
) -> None:
    gateway.ollama.answer(CHAT, tokens("ab", path=CHAT, done=False), interruption)

    with pytest.raises(anthropic.APIStatusError) as caught, client.messages.stream(**REQUEST) as s:
        s.get_final_message()

    assert caught.value.type == "api_error" and caught.value.error_code == "upstream_broke"
    assert (usage_row().outcome, usage_row().billed) == ("upstream_broke", False)


def test_closing_a_stream_stops_the_model_server(
    client: anthropic.Anthropic, gateway: RunningGateway
) -> None:
    gateway.ollama.answer(CHAT, tokens("ab", path=CHAT, done=False), Stall())

    with client.messages.stream(**REQUEST) as stream:
        assert next(iter(stream.text_stream)) == "a"

    assert gateway.ollama.requests[-1].left.wait(1)
    row = usage_row()
    assert (row.outcome, row.billed) == ("client_left", True) and 1 <= row.completion_tokens <= 2
    assert not any(rows for _check, rows in reconciliation.differences())


def test_closing_a_stream_before_the_first_chunk_stops_the_model_server(
    client: anthropic.Anthropic, gateway: RunningGateway
) -> None:
    gateway.ollama.answer(CHAT, Stall())

    with client.messages.stream(**REQUEST) as stream:
        assert next(iter(stream)).type == "message_start"

    assert gateway.ollama.requests[-1].left.wait(1)
    assert (usage_row().outcome, usage_row().billed) == ("client_left", False)


def test_a_stream_without_chunks_sends_pings_that_the_client_ignores(
    client: anthropic.Anthropic, gateway: RunningGateway, alice: Caller
) -> None:
    gateway.ollama.answer(CHAT, Sleep(0.8), tokens("ab", path=CHAT, pause=0.6))

    with gateway.client() as raw:
        raw.post("/v1/messages", REQUEST | {"stream": True}, key=alice.secret)
        began = time.monotonic()
        assert raw.read_head().headers["content-type"].startswith("text/event-stream")
        assert time.monotonic() - began < 0.75, "the response begins before the model does"
        kinds = [event["type"] for event in events(raw.read_all())]

    assert kinds[:3] == ["message_start", "ping", "ping"] and kinds[-1] == "message_stop"
    first_delta = kinds.index("content_block_delta")
    assert kinds[first_delta:].count("ping") >= 2
    assert text_of(create(client, stream=True)) == "ab"


def test_an_error_after_the_first_ping_is_an_event_and_raises(
    client: anthropic.Anthropic, gateway: RunningGateway
) -> None:
    gateway.ollama.answer(CHAT, Sleep(2 * KEEP_ALIVE), BUSY)

    with pytest.raises(anthropic.APIStatusError) as caught:
        create(client, stream=True)

    assert caught.value.type == "overloaded_error"
    assert (usage_row().outcome, usage_row().billed) == ("upstream_refused", False)
