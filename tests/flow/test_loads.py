"""A load belongs to the gateway: no client who leaves can abort it, or disturb who is served."""

import json
import threading
import time
from collections.abc import Iterator

import pytest

from accounts import keys
from billing.models import Hold, TokenUsage
from tests.fakes.ollama import FakeOllama
from tests.harness.callers import Caller
from tests.harness.gateway import DEADLINES, RunningGateway, eventually, gateway_env
from tests.servers.gunicorn import Gunicorn

pytestmark = pytest.mark.usefixtures("priced")

WORKERS = 2
LOAD_SECONDS = 3.0
LLAMA, MISTRAL = "llama3:latest", "mistral:latest"


@pytest.fixture
def cold(django_db_setup: None, transactional_db: None) -> Iterator[RunningGateway]:
    """A gateway that knows nothing yet, and a model server that has llama3 in memory and takes its
    time to load others."""
    with FakeOllama() as ollama:
        ollama.memory.models, ollama.memory.seconds = [LLAMA], LOAD_SECONDS
        env = gateway_env(ollama, **DEADLINES, KEEP_ALIVE_SECONDS="0.3", DRAIN_SECONDS="0.5")
        with Gunicorn(env) as server:
            yield RunningGateway(server, ollama, env)


def ask(gateway: RunningGateway, caller: Caller, model: str) -> float:
    """Ask for a stream; return how long its first line took."""
    began = time.monotonic()
    with gateway.client() as client:
        client.post("/api/generate", {"model": model, "prompt": "hello there"}, key=caller.secret)
        first = client.read_json()
        took = time.monotonic() - began
        assert "error" not in first, first
        client.read_all()
    return took


def come_and_leave(gateway: RunningGateway, caller: Caller, path: str = "/api/generate") -> None:
    body = {"model": "mistral", "prompt": "hi", "max_tokens": 5, "stream": True}
    with gateway.client() as client:
        client.post(path, body, key=caller.secret)
        time.sleep(0.1)


def test_fifty_who_come_and_leave_cost_one_load_and_abort_none(
    cold: RunningGateway, alice: Caller
) -> None:
    ask(cold, alice, "llama3")
    neighbour: list[float] = []
    done = threading.Event()

    def be_served() -> None:
        while not done.is_set():
            neighbour.append(ask(cold, alice, "llama3"))
            time.sleep(0.05)

    thread = threading.Thread(target=be_served)
    thread.start()
    with cold.client() as first:
        first.post("/api/generate", {"model": "mistral", "prompt": "hi"}, key=alice.secret)
        cold.ollama.wait_for(1, "/api/embed")
    for _ in range(50):
        come_and_leave(cold, alice)
    done.set()
    thread.join(20)

    loads = cold.ollama.memory.loads
    assert [(load.model, load.aborted) for load in loads] == [(MISTRAL, False)]
    assert len(neighbour) > 20 and max(neighbour) < LOAD_SECONDS
    assert ask(cold, alice, "mistral") < LOAD_SECONDS


def test_all_who_wait_are_served_after_one_load(cold: RunningGateway, alice: Caller) -> None:
    took: list[float] = []
    threads = [
        threading.Thread(target=lambda: took.append(ask(cold, alice, "mistral"))) for _ in range(12)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)

    assert len(took) == 12 and max(took) < 2 * LOAD_SECONDS
    assert len(cold.ollama.memory.loads) == 1
    assert len(cold.ollama.calls("/api/embed")) <= WORKERS, "one load call for each process"


def test_who_leaves_while_the_model_loads_leaves_no_trace(
    cold: RunningGateway, alice: Caller
) -> None:
    cold.ollama.memory.seconds = 2.0

    with cold.client() as client:
        client.post("/api/generate", {"model": "mistral", "prompt": "hi"}, key=alice.secret)
        cold.ollama.wait_for(1, "/api/embed")
        assert Hold.objects.count() == 1, "it may cost something, so it is held"

    eventually(lambda: not Hold.objects.exists(), 1.0)
    assert not TokenUsage.objects.exists() and cold.ollama.calls("/api/generate") == []
    assert alice.wallet.held == 0


def test_signs_of_life_come_while_the_model_loads(cold: RunningGateway, alice: Caller) -> None:
    body = {"model": "mistral", "messages": [{"role": "user", "content": "hi"}], "stream": True}
    with cold.client() as client:
        client.post("/v1/chat/completions", body, key=alice.secret)
        first = client.read_line()
        assert not cold.ollama.calls("/api/chat"), "it came after the load"
        rest = client.read_all()

    assert first is not None and first.startswith(b":")
    assert rest.rstrip().endswith(b"data: [DONE]")


def test_a_revoked_key_waits_for_no_load(cold: RunningGateway, alice: Caller) -> None:
    cold.ollama.memory.seconds = 3.0
    with cold.client() as client:
        client.post("/api/generate", {"model": "mistral", "prompt": "hi"}, key=alice.secret)
        cold.ollama.wait_for(1, "/api/embed")
        keys.revoke(alice.key.pk)
        answer = json.loads(client.read_all())

    assert answer["code"] == "key_revoked" and not TokenUsage.objects.exists()
    eventually(lambda: MISTRAL in (cold.ollama.memory.models or []), 5.0)


def test_a_load_that_takes_longer_than_a_first_line_may_is_a_504(
    cold: RunningGateway, alice: Caller
) -> None:
    cold.ollama.memory.seconds = 30.0
    with cold.client() as client:
        client.post("/api/generate", {"model": "mistral", "prompt": "hi"}, key=alice.secret)
        answer = json.loads(client.read_all())

    assert client.head is not None and client.head.status == 504
    assert answer["code"] == "upstream_stalled" and not TokenUsage.objects.exists()


def test_a_restart_ends_who_waits_for_a_load(cold: RunningGateway, alice: Caller) -> None:
    cold.ollama.memory.seconds = 3.5
    with cold.client() as client:
        client.post("/api/generate", {"model": "mistral", "prompt": "hi"}, key=alice.secret)
        cold.ollama.wait_for(1, "/api/embed")
        stopping = threading.Thread(target=cold.server.stop)
        stopping.start()
        answer = json.loads(client.read_all())
    stopping.join(20)

    assert answer["code"] == "gateway_stopping"
    assert not TokenUsage.objects.exists() and not Hold.objects.exists()
