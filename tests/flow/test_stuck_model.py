"""A model that a schema has stopped is unloaded; one that is merely idle or busy is left alone."""

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
def cast(gateway: RunningGateway, alice: Caller, priced: Any) -> None:
    pass


def leave(gateway: RunningGateway, caller: Caller, **fields: Any) -> None:
    """Ask, and leave once the model server has been asked."""
    before = len(gateway.ollama.calls("/api/chat"))
    with gateway.client() as client:
        client.post("/api/chat", ASKED | fields, headers=caller.headers)
        gateway.ollama.wait_for(before + 1, "/api/chat")
    gateway.ollama.wait_idle()


def unloads(gateway: RunningGateway) -> list[Received]:
    return [call for call in gateway.ollama.calls("/api/generate") if "keep_alive" in call.json]


def asked_for_a_token(gateway: RunningGateway) -> list[Received]:
    return [call for call in gateway.ollama.calls("/api/generate") if "prompt" in call.json]


def stuck_until_unloaded(received: Received) -> list[Step]:
    return reply({"done": True}) if "keep_alive" in received.json else [Stall()]


def test_a_stuck_model_is_unloaded_and_the_next_client_is_served(
    gateway: RunningGateway, alice: Caller
) -> None:
    gateway.ollama.answer("/api/chat", Stall(), times=1)
    gateway.ollama.answer("/api/generate", stuck_until_unloaded)

    leave(gateway, alice, format=SCHEMA)

    [unload] = eventually(lambda: unloads(gateway))
    assert unload.json == {"model": "llama3:latest", "keep_alive": 0, "stream": False}
    with gateway.client() as client:
        client.post("/api/chat", ASKED, headers=alice.headers)
        assert client.read_head().status == 200


def test_a_model_that_stops_in_mid_answer_is_unloaded(
    gateway: RunningGateway, alice: Caller
) -> None:
    gateway.ollama.answer("/api/chat", tokens("ab", path="/api/chat", done=False), Stall(), times=1)
    gateway.ollama.answer("/api/generate", stuck_until_unloaded)

    leave(gateway, alice, format=SCHEMA)

    assert eventually(lambda: unloads(gateway))


def test_an_idle_model_is_asked_for_a_token_and_left_alone(
    gateway: RunningGateway, alice: Caller
) -> None:
    gateway.ollama.answer("/api/chat", Stall(), times=1)

    leave(gateway, alice, format=SCHEMA)

    eventually(lambda: asked_for_a_token(gateway))
    leave(gateway, alice)  # Whatever follows is long enough for an unload to show.
    gateway.ollama.wait_idle()
    assert unloads(gateway) == []


def test_a_model_that_others_hear_from_is_not_even_asked(
    gateway: RunningGateway, alice: Caller
) -> None:
    gateway.ollama.answer("/api/chat", Stall(), times=1)
    leave(gateway, alice, format=SCHEMA)
    steps = tokens("a" * 30, path="/api/chat", pause=SECONDS / 10)
    gateway.ollama.answer("/api/chat", steps, times=1)

    with gateway.client() as client:
        client.post("/api/chat", ASKED, headers=alice.headers)
        assert client.read_all()

    assert gateway.ollama.calls("/api/generate") == []


@pytest.mark.parametrize("fields", [{}, {"format": "json"}], ids=["plain", "json"])
def test_who_leaves_without_a_schema_stops_nobody(
    gateway: RunningGateway, alice: Caller, fields: dict[str, Any]
) -> None:
    gateway.ollama.answer("/api/chat", Sleep(30), times=1)
    leave(gateway, alice, **fields)

    gateway.ollama.answer("/api/chat", Sleep(2 * SECONDS), tokens("a", path="/api/chat"), times=1)
    with gateway.client() as client:
        client.post("/api/chat", ASKED, headers=alice.headers)
        assert client.read_all()

    assert gateway.ollama.calls("/api/generate") == []


def test_a_whole_answer_was_not_left(gateway: RunningGateway, alice: Caller) -> None:
    for _ in range(3):
        with gateway.client() as client:
            client.post("/api/chat", ASKED | {"format": SCHEMA}, headers=alice.headers)
            assert client.read_all()
    gateway.ollama.answer("/api/chat", Sleep(2 * SECONDS), tokens("a", path="/api/chat"), times=1)
    with gateway.client() as client:
        client.post("/api/chat", ASKED, headers=alice.headers)
        assert client.read_all()

    assert gateway.ollama.calls("/api/generate") == []
