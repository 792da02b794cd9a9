"""Lists of models cost the model server one call a second, and nothing when nobody waits."""

import threading
import time
from collections.abc import Iterator

import pytest
import requests

from tests.conftest import Caller, new_caller
from tests.fakes.ollama import FakeOllama
from tests.fakes.script import Stall
from tests.flow.conftest import House, eventually, gateway_env
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
def running(django_db_setup: None, django_db_blocker: object) -> Iterator[House]:
    """A gateway with few threads."""
    with FakeOllama() as ollama:
        env = gateway_env(ollama, GATEWAY_THREADS=str(THREADS), GATEWAY_WORKERS=str(WORKERS))
        with Gunicorn(env) as server:
            yield House(server, ollama, env)


def open_calls(house: House) -> int:
    return house.ollama.open_looks + house.ollama.in_flight


@pytest.mark.parametrize("path", [*LISTINGS, "/readyz"])
def test_a_crowd_that_leaves_a_stalled_list_leaves_nothing_behind(house: House, path: str) -> None:
    caller = new_caller("Penniless", credit="0")
    time.sleep(1.1)  # What was known is too old then.
    for stalled in ("/api/tags", "/api/ps", "/api/version"):
        house.ollama.answer(stalled, Stall())
    clients = [RawClient(house.server.url) for _ in range(CALLERS)]
    for client in clients:
        client.get(path, key=caller.secret)
    time.sleep(0.5)
    assert open_calls(house) <= WORKERS, "one call for all who wait"

    for client in clients:
        client.close()

    eventually(lambda: open_calls(house) == 0, 1.0)
    answer = requests.get(f"{house.server.url}/healthz", timeout=2)
    assert answer.status_code == 200, "the threads are free"


def test_facts_that_stall_are_left_too(house: House, alice: Caller) -> None:
    house.ollama.answer("/api/show", Stall())
    clients = [RawClient(house.server.url) for _ in range(CALLERS)]
    for client in clients:
        client.post("/api/show", {"model": "llama3"}, key=alice.secret)
    house.ollama.wait_for(1, "/api/show")
    time.sleep(0.3)
    assert open_calls(house) <= WORKERS

    for client in clients:
        client.close()

    eventually(lambda: open_calls(house) == 0, 1.0)


@pytest.mark.parametrize("path", [*LISTINGS, "/readyz"])
def test_a_crowd_costs_a_call_in_an_interval(house: House, alice: Caller, path: str) -> None:
    asked = LISTINGS.get(path, "/api/version")
    before, until = len(house.ollama.calls(asked)), time.monotonic() + SECONDS
    statuses: list[int] = []

    def ask() -> None:
        with requests.Session() as session:
            while time.monotonic() < until:
                headers = {} if path == "/readyz" else alice.headers
                answer = session.get(house.server.url + path, headers=headers, timeout=10)
                statuses.append(answer.status_code)

    threads = [threading.Thread(target=ask) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)

    assert set(statuses) == {200} and len(statuses) > 20
    assert len(house.ollama.calls(asked)) - before <= WORKERS * (SECONDS + 1)
