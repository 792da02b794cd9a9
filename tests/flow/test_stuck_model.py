"""A model that a schema blocks is unloaded. An idle or busy model is not."""

from collections.abc import Iterator
from typing import Any

import pytest

from tests.fakes.ollama import FakeOllama, Received
from tests.fakes.script import Sleep, Stall, Step, reply, tokens
from tests.harness.callers import Caller
from tests.harness.gateway import RunningGateway, eventually, gateway_env
from tests.servers.gunicorn import Gunicorn

SECONDS = 1.0
ASKED = {"model": "llama3", "messages": [{"role": "user", "content": "hi"}], "stream": True}
SCHEMA = {"type": "object"}


@pytest.fixture(scope="module")
def running(django_db_setup: None, django_db_blocker: Any) -> Iterator[RunningGateway]:
    with FakeOllama() as ollama:
        env = gateway_env(ollama, STUCK_MODEL_SECONDS=str(SECONDS), GATEWAY_WORKERS="1")
        with Gunicorn(env) as server:
            yield RunningGateway(server, ollama, env)


@pytest.fixture(autouse=True)
def request_setup(gateway: RunningGateway, alice: Caller, priced: Any) -> None:
    pass


def disconnect(gateway: RunningGateway, caller: Caller, **fields: Any) -> None:
    """Send a request, and disconnect once the model server has received it."""
    before = len(gateway.ollama.calls("/api/chat"))
    with gateway.client() as client:
        client.post("/api/chat", ASKED | fields, headers=caller.headers)
        gateway.ollama.wait_for(before + 1, "/api/chat")
    gateway.ollama.wait_idle()


def unloads(gateway: RunningGateway) -> list[Received]:
    return [call for call in gateway.ollama.calls("/api/generate") if "keep_alive" in call.json]


def probes(gateway: RunningGateway) -> list[Received]:
    return [call for call in gateway.ollama.calls("/api/generate") if "prompt" in call.json]


def blocked_until_unloaded(received: Received) -> list[Step]:
    return reply({"done": True}) if "keep_alive" in received.json else [Stall()]


def test_a_blocked_model_is_unloaded_and_the_next_request_is_served(
    gateway: RunningGateway, alice: Caller
) -> None:
    gateway.ollama.answer("/api/chat", Stall(), times=1)
    gateway.ollama.answer("/api/generate", blocked_until_unloaded)

    disconnect(gateway, alice, format=SCHEMA)

    [unload] = eventually(lambda: unloads(gateway))
    assert unload.json == {"model": "llama3:latest", "keep_alive": 0, "stream": False}
    with gateway.client() as client:
        client.post("/api/chat", ASKED, headers=alice.headers)
        assert client.read_head().status == 200


def test_a_model_that_blocks_in_mid_stream_is_unloaded(
    gateway: RunningGateway, alice: Caller
) -> None:
    gateway.ollama.answer("/api/chat", tokens("ab", path="/api/chat", done=False), Stall(), times=1)
    gateway.ollama.answer("/api/generate", blocked_until_unloaded)

    disconnect(gateway, alice, format=SCHEMA)

    assert eventually(lambda: unloads(gateway))


def test_an_idle_model_gets_a_test_request_and_stays_loaded(
    gateway: RunningGateway, alice: Caller
) -> None:
    gateway.ollama.answer("/api/chat", Stall(), times=1)

    disconnect(gateway, alice, format=SCHEMA)

    eventually(lambda: probes(gateway))
    disconnect(gateway, alice)  # Whatever follows is long enough for an unload to show.
    gateway.ollama.wait_idle()
    assert unloads(gateway) == []


def test_a_model_that_serves_others_gets_no_test_request(
    gateway: RunningGateway, alice: Caller
) -> None:
    gateway.ollama.answer("/api/chat", Stall(), times=1)
    disconnect(gateway, alice, format=SCHEMA)
    steps = tokens("a" * 30, path="/api/chat", pause=SECONDS / 10)
    gateway.ollama.answer("/api/chat", steps, times=1)

    with gateway.client() as client:
        client.post("/api/chat", ASKED, headers=alice.headers)
        assert client.read_all()

    assert gateway.ollama.calls("/api/generate") == []


@pytest.mark.parametrize("fields", [{}, {"format": "json"}], ids=["plain", "json"])
def test_a_disconnect_without_a_schema_unloads_nothing(
    gateway: RunningGateway, alice: Caller, fields: dict[str, Any]
) -> None:
    gateway.ollama.answer("/api/chat", Sleep(30), times=1)
    disconnect(gateway, alice, **fields)

    gateway.ollama.answer("/api/chat", Sleep(2 * SECONDS), tokens("a", path="/api/chat"), times=1)
    with gateway.client() as client:
        client.post("/api/chat", ASKED, headers=alice.headers)
        assert client.read_all()

    assert gateway.ollama.calls("/api/generate") == []


def test_a_complete_response_unloads_nothing(gateway: RunningGateway, alice: Caller) -> None:
    for _ in range(3):
        with gateway.client() as client:
            client.post("/api/chat", ASKED | {"format": SCHEMA}, headers=alice.headers)
            assert client.read_all()
    gateway.ollama.answer("/api/chat", Sleep(2 * SECONDS), tokens("a", path="/api/chat"), times=1)
    with gateway.client() as client:
        client.post("/api/chat", ASKED, headers=alice.headers)
        assert client.read_all()

    assert gateway.ollama.calls("/api/generate") == []
