"""Streams are relayed chunk by chunk and never buffered."""

import json
import threading

import pytest

from tests.fakes.script import Wait, tokens
from tests.harness.callers import Caller
from tests.harness.gateway import RunningGateway

pytestmark = pytest.mark.usefixtures("priced")


@pytest.mark.parametrize("path", ["/api/generate", "/generate"])
def test_a_chunk_arrives_before_the_next_is_produced(
    gateway: RunningGateway, alice: Caller, path: str
) -> None:
    seen = threading.Event()
    gateway.ollama.answer("/api/generate", tokens("a", done=False), Wait(seen), tokens("b"))

    with gateway.client() as client:
        client.post(path, {"model": "llama3", "prompt": "x", "stream": True}, key=alice.secret)
        assert client.read_head().headers["x-accel-buffering"] == "no"
        assert json.loads(client.read_line() or b"")["response"] == "a"
        seen.set()
        assert client.read_all().count(b'"done":true') == 1
