"""Lists of models cost the model server one call per second, and none if no client waits."""

import threading
import time
from collections.abc import Iterator

import pytest
import requests

from tests.fakes.ollama import FakeOllama
from tests.fakes.script import Stall
from tests.harness.callers import Caller, new_caller
from tests.harness.gateway import RunningGateway, eventually, gateway_env
from tests.servers.client import RawClient
from tests.servers.gunicorn import Gunicorn

pytestmark = pytest.mark.usefixtures("priced")

WORKERS, THREADS, CALLERS, SECONDS = 2, 8, 32, 2.0
LISTINGS = {
    "/models": "/api/tags",
    "/api/tags": "/api/tags",
    "/v1/models": "/api/tags",
    "/v1/models/llama3": "/api/tags",
    "/api/ps": "/api/ps",
    "/api/version": "/api/version",
}


@pytest.fixture(scope="module")
def running(django_db_setup: None, django_db_blocker: object) -> Iterator[RunningGateway]:
    """A gateway with few threads."""
    with FakeOllama() as ollama:
        env = gateway_env(ollama, GATEWAY_THREADS=str(THREADS), GATEWAY_WORKERS=str(WORKERS))
        with Gunicorn(env) as server:
            yield RunningGateway(server, ollama, env)


def open_calls(gateway: RunningGateway) -> int:
    return gateway.ollama.open_looks + gateway.ollama.in_flight


@pytest.mark.parametrize("path", [*LISTINGS, "/readyz"])
def test_disconnects_from_a_stalled_list_free_all_threads(
    gateway: RunningGateway, path: str
) -> None:
    caller = new_caller("Penniless", credit="0")
    time.sleep(1.1)  # The known list is too old by then.
    for stalled in ("/api/tags", "/api/ps", "/api/version"):
        gateway.ollama.answer(stalled, Stall())
    clients = [RawClient(gateway.server.url) for _ in range(CALLERS)]
    for client in clients:
        client.get(path, key=caller.secret)
    time.sleep(0.5)
    assert open_calls(gateway) <= WORKERS, "one call for all waiting clients"

    for client in clients:
        client.close()

    eventually(lambda: open_calls(gateway) == 0, 1.0)
    answer = requests.get(f"{gateway.server.url}/healthz", timeout=2)
    assert answer.status_code == 200, "the threads are free"


def test_disconnects_from_a_stalled_show_free_all_threads(
    gateway: RunningGateway, alice: Caller
) -> None:
    gateway.ollama.answer("/api/show", Stall())
    clients = [RawClient(gateway.server.url) for _ in range(CALLERS)]
    for client in clients:
        client.post("/api/show", {"model": "llama3"}, key=alice.secret)
    gateway.ollama.wait_for(1, "/api/show")
    time.sleep(0.3)
    assert open_calls(gateway) <= WORKERS

    for client in clients:
        client.close()

    eventually(lambda: open_calls(gateway) == 0, 1.0)


@pytest.mark.parametrize("path", [*LISTINGS, "/readyz"])
def test_concurrent_requests_share_one_call_per_interval(
    gateway: RunningGateway, alice: Caller, path: str
) -> None:
    route = LISTINGS.get(path, "/api/version")
    before, until = len(gateway.ollama.calls(route)), time.monotonic() + SECONDS
    statuses: list[int] = []

    def ask() -> None:
        with requests.Session() as session:
            while time.monotonic() < until:
                headers = {} if path == "/readyz" else alice.headers
                answer = session.get(gateway.server.url + path, headers=headers, timeout=10)
                statuses.append(answer.status_code)

    threads = [threading.Thread(target=ask) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)

    assert set(statuses) == {200} and len(statuses) > 20
    assert len(gateway.ollama.calls(route)) - before <= WORKERS * (SECONDS + 1)
