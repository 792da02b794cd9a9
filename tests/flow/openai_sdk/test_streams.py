"""Disconnects and keep-alive comments with the `openai` client."""

import time
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import openai
import pytest

from tests.fakes.script import Sleep, Stall, tokens
from tests.flow.openai_sdk.calls import (
    HELLO,
    chat,
    chat_script,
)
from tests.harness.callers import Caller
from tests.harness.gateway import RunningGateway, usage_row
from tests.servers.client import RawClient
from tests.servers.gunicorn import Gunicorn

pytestmark = pytest.mark.usefixtures("priced")


@pytest.mark.parametrize("family", ["chat", "completions", "responses"])
def test_closing_a_stream_stops_the_model_server_within_a_second(
    client: openai.OpenAI, gateway: RunningGateway, family: str
) -> None:
    for path in ("/api/chat", "/api/generate"):
        gateway.ollama.answer(path, tokens("abc", path=path, done=False), Stall())
    asks: dict[str, Any] = {
        "chat": lambda: chat(client, stream=True),
        "completions": lambda: client.completions.create(model="llama3", prompt="x", stream=True),
        "responses": lambda: client.responses.create(model="llama3", input="x", stream=True),
    }
    stream = asks[family]()
    next(stream)
    time.sleep(0.1)

    stream.close()

    assert gateway.ollama.requests[-1].left.wait(1)
    row = usage_row()
    assert (row.outcome, row.billed) == ("client_left", True) and row.cost > Decimal(0)


@pytest.fixture(scope="module")
def short_keepalive(running: RunningGateway) -> Iterator[Gunicorn]:
    """The same gateway with a keep-alive interval of 0.1 s."""
    with Gunicorn({**running.env, "KEEP_ALIVE_SECONDS": "0.1"}) as server:
        yield server


def test_the_client_ignores_keep_alive_comments(
    gateway: RunningGateway, short_keepalive: Gunicorn, alice: Caller
) -> None:
    gateway.ollama.answer("/api/chat", Sleep(0.4), chat_script("ab", pause=0.3))
    client = openai.OpenAI(base_url=f"{short_keepalive.url}/v1", api_key=alice.secret)

    chunks = list(chat(client, stream=True))
    with client.responses.stream(model="llama3", input="hi") as stream:
        final = stream.get_final_response()

    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "ab"
    assert final.output_text == "ab"


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/responses"])
def test_a_disconnect_before_the_first_chunk_stops_the_model_server(
    gateway: RunningGateway, short_keepalive: Gunicorn, alice: Caller, path: str
) -> None:
    gateway.ollama.answer("/api/chat", Stall())
    fields = {"messages": HELLO} if "chat" in path else {"input": "hello there"}
    with RawClient(short_keepalive.url) as client:
        client.post(path, {"model": "llama3", "stream": True, **fields}, key=alice.secret)
        assert client.read_head().status == 200 and client.read_line() == b": keep-alive"

    assert gateway.ollama.requests[-1].left.wait(1)
    row = usage_row()
    assert (row.outcome, row.billed, row.cost) == ("client_left", False, Decimal(0))
