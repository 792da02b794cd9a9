"""The gateway loads models itself: a disconnect neither aborts a load nor delays others."""

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
def new_gateway(django_db_setup: None, transactional_db: None) -> Iterator[RunningGateway]:
    """A new gateway, and a model server that has llama3 in memory and loads others slowly."""
    with FakeOllama() as ollama:
        ollama.memory.models, ollama.memory.seconds = [LLAMA], LOAD_SECONDS
        env = gateway_env(ollama, **DEADLINES, KEEP_ALIVE_SECONDS="0.3", DRAIN_SECONDS="0.5")
        with Gunicorn(env) as server:
            yield RunningGateway(server, ollama, env)


def ask(gateway: RunningGateway, caller: Caller, model: str) -> float:
    """Send a request; return the seconds until the first line."""
    began = time.monotonic()
    with gateway.client() as client:
        client.post("/api/generate", {"model": model, "prompt": "hello there"}, key=caller.secret)
        first = client.read_json()
        took = time.monotonic() - began
        assert "error" not in first, first
        client.read_all()
    return took


def request_and_disconnect(
    gateway: RunningGateway, caller: Caller, path: str = "/api/generate"
) -> None:
    body = {"model": "mistral", "prompt": "hi", "max_tokens": 5, "stream": True}
    with gateway.client() as client:
        client.post(path, body, key=caller.secret)
        time.sleep(0.1)


def test_fifty_disconnects_cause_one_load_and_abort_none(
    new_gateway: RunningGateway, alice: Caller
) -> None:
    ask(new_gateway, alice, "llama3")
    other_seconds: list[float] = []
    done = threading.Event()

    def send_requests() -> None:
        while not done.is_set():
            other_seconds.append(ask(new_gateway, alice, "llama3"))
            time.sleep(0.05)

    thread = threading.Thread(target=send_requests)
    thread.start()
    with new_gateway.client() as first:
        first.post("/api/generate", {"model": "mistral", "prompt": "hi"}, key=alice.secret)
        new_gateway.ollama.wait_for(1, "/api/embed")
    for _ in range(50):
        request_and_disconnect(new_gateway, alice)
    done.set()
    thread.join(20)

    loads = new_gateway.ollama.memory.loads
    assert [(load.model, load.aborted) for load in loads] == [(MISTRAL, False)]
    assert len(other_seconds) > 20 and max(other_seconds) < LOAD_SECONDS
    assert ask(new_gateway, alice, "mistral") < LOAD_SECONDS


def test_all_waiting_requests_are_served_after_one_load(
    new_gateway: RunningGateway, alice: Caller
) -> None:
    took: list[float] = []
    threads = [
        threading.Thread(target=lambda: took.append(ask(new_gateway, alice, "mistral")))
        for _ in range(12)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)

    assert len(took) == 12 and max(took) < 2 * LOAD_SECONDS
    assert len(new_gateway.ollama.memory.loads) == 1
    assert len(new_gateway.ollama.calls("/api/embed")) <= WORKERS, "one load call for each process"


def test_a_disconnect_during_a_load_leaves_no_hold_and_no_usage_row(
    new_gateway: RunningGateway, alice: Caller
) -> None:
    new_gateway.ollama.memory.seconds = 2.0

    with new_gateway.client() as client:
        client.post("/api/generate", {"model": "mistral", "prompt": "hi"}, key=alice.secret)
        new_gateway.ollama.wait_for(1, "/api/embed")
        assert Hold.objects.count() == 1, "credit is held during the load"

    eventually(lambda: not Hold.objects.exists(), 1.0)
    assert not TokenUsage.objects.exists() and new_gateway.ollama.calls("/api/generate") == []
    assert alice.wallet.held == 0


def test_keep_alive_comments_arrive_during_a_load(
    new_gateway: RunningGateway, alice: Caller
) -> None:
    body = {"model": "mistral", "messages": [{"role": "user", "content": "hi"}], "stream": True}
    with new_gateway.client() as client:
        client.post("/v1/chat/completions", body, key=alice.secret)
        first = client.read_line()
        assert not new_gateway.ollama.calls("/api/chat"), "the comment came after the load"
        rest = client.read_all()

    assert first is not None and first.startswith(b":")
    assert rest.rstrip().endswith(b"data: [DONE]")


def test_revoking_a_key_ends_its_wait_for_a_load(
    new_gateway: RunningGateway, alice: Caller
) -> None:
    new_gateway.ollama.memory.seconds = 3.0
    with new_gateway.client() as client:
        client.post("/api/generate", {"model": "mistral", "prompt": "hi"}, key=alice.secret)
        new_gateway.ollama.wait_for(1, "/api/embed")
        keys.revoke(alice.key.pk)
        answer = json.loads(client.read_all())

    assert answer["code"] == "key_revoked" and not TokenUsage.objects.exists()
    eventually(lambda: MISTRAL in (new_gateway.ollama.memory.models or []), 5.0)


def test_a_load_that_exceeds_the_first_chunk_timeout_is_a_504(
    new_gateway: RunningGateway, alice: Caller
) -> None:
    new_gateway.ollama.memory.seconds = 30.0
    with new_gateway.client() as client:
        client.post("/api/generate", {"model": "mistral", "prompt": "hi"}, key=alice.secret)
        answer = json.loads(client.read_all())

    assert client.head is not None and client.head.status == 504
    assert answer["code"] == "upstream_stalled" and not TokenUsage.objects.exists()


def test_a_restart_ends_a_wait_for_a_load(new_gateway: RunningGateway, alice: Caller) -> None:
    new_gateway.ollama.memory.seconds = 3.5
    with new_gateway.client() as client:
        client.post("/api/generate", {"model": "mistral", "prompt": "hi"}, key=alice.secret)
        new_gateway.ollama.wait_for(1, "/api/embed")
        stopping = threading.Thread(target=new_gateway.server.stop)
        stopping.start()
        answer = json.loads(client.read_all())
    stopping.join(20)

    assert answer["code"] == "gateway_stopping"
    assert not TokenUsage.objects.exists() and not Hold.objects.exists()
