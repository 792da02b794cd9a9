"""A few connections to PostgreSQL serve all requests, because no request keeps one while it waits
for a client, the model server or the next request.

Each test has a pool smaller than the number of requests that run at once.
"""

import contextlib
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.fakes.script import Sleep
from tests.faults.conftest import percentile
from tests.faults.load import Streams, ask_many, whole_with_usage
from tests.harness.deployment import Deployment, Producer, deploy
from tests.servers.client import RawClient
from tests.servers.gunicorn import Gunicorn

pytestmark = pytest.mark.once  # It brings its own databases, so one run is enough.

CROWD = 8
PATIENCE = 4.0  # Seconds: twice as long as a request waits for a database that serves no request.


@pytest.fixture(scope="module")
def deployment() -> Iterator[Deployment]:
    with deploy("postgresql", DATABASE_POOL_SIZE="2", GATEWAY_WORKERS="1") as made:
        yield made


@pytest.fixture
def server(deployment: Deployment) -> Iterator[Gunicorn]:
    deployment.ollama.reset()
    deployment.ollama.answer("/api/generate", Producer())
    with deployment.gateway() as running:
        yield running


def test_waiting_streams_hold_no_database_connection(
    deployment: Deployment, server: Gunicorn
) -> None:
    streams = Streams(deployment, server.url, CROWD, pieces=60)
    others_are_served(deployment, server, f"{CROWD} streams")
    assert not streams.seen, "the streams were over too soon"

    whole_with_usage(streams.wait())


def test_an_idle_thread_holds_no_database_connection(
    deployment: Deployment, server: Gunicorn
) -> None:
    """One of the first requests records when the key was last used, after its response was sent."""
    with deployment.gateway(DATABASE_POOL_SIZE="1") as narrow:
        whole_with_usage(ask_many(narrow.url, deployment.key, CROWD))
        others_are_served(deployment, narrow, "idle threads")


def test_a_slow_upload_holds_no_database_connection(
    deployment: Deployment, server: Gunicorn
) -> None:
    head = {"Content-Length": "500"}
    with crowd(server) as clients:
        for client in clients:
            client.post("/api/generate", b"{", key=deployment.key, headers=head)
        others_are_served(deployment, server, f"{CROWD} half bodies")


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/api/tags", None),
        ("/v1/models", None),
        ("/api/show", {"model": "llama3"}),
        ("/api/generate", {"model": "llama3", "prompt": "hi"}),
    ],
    ids=["a list", "a list for OpenAI", "a model's facts", "a first line"],
)
def test_waiting_for_the_model_server_holds_no_database_connection(
    deployment: Deployment, server: Gunicorn, path: str, body: dict[str, Any] | None
) -> None:
    asked = path.replace("/v1/models", "/api/tags")
    deployment.ollama.answer(asked, Sleep(20))
    with crowd(server) as clients:
        for client in clients:
            client.request("POST" if body else "GET", path, body or b"", key=deployment.key)
        # All requests for a list wait for one call of their process.
        deployment.ollama.wait_for(CROWD if path == "/api/generate" else 1, asked)
        time.sleep(0.5)
        others_are_served(deployment, server, f"{CROWD} who ask for {path}")
        deployment.ollama.cut()


def test_many_requests_wait_for_a_slow_database(deployment: Deployment, server: Gunicorn) -> None:
    """They wait longer than for a database that is away: while it serves any request, all get a
    turn."""
    deployment.query(DAWDLE)
    deployment.query(DAWDLES)
    began = time.monotonic()
    seen = ask_many(server.url, deployment.key, 60)
    assert time.monotonic() - began > PATIENCE, "there was no line to stand in"
    deployment.query("DROP TRIGGER dawdles ON billing_hold")

    whole_with_usage(seen)


# A fifth of a second for each hold, and two at a time.
DAWDLE = """CREATE FUNCTION dawdle() RETURNS trigger AS
    'BEGIN PERFORM pg_sleep(0.2); RETURN NEW; END' LANGUAGE plpgsql"""
DAWDLES = (
    "CREATE TRIGGER dawdles BEFORE INSERT ON billing_hold FOR EACH ROW EXECUTE FUNCTION dawdle()"
)


@contextlib.contextmanager
def crowd(server: Gunicorn) -> Iterator[list[RawClient]]:
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(RawClient(server.url)) for _ in range(CROWD)]


def others_are_served(deployment: Deployment, server: Gunicorn, beside: str) -> None:
    taken = [ask_usage(server.url, deployment.key) for _ in range(30)]
    print(f"\npool of 2, {beside}: /usage in {percentile(taken, 50) * 1000:.0f} ms (p50),", end="")
    print(f" {max(taken) * 1000:.0f} ms at most", end=" ")
    assert max(taken) < 10


def ask_usage(url: str, key: str) -> float:
    began = time.monotonic()
    with RawClient(url, timeout=15) as client:
        client.get("/usage", key=key)
        assert client.read_head().status == 200
        client.read_all()
    return time.monotonic() - began
