"""A database may have a stricter default isolation level: every request is still served."""

import threading
from collections.abc import Iterator

import pytest

from tests.faults.load import whole_with_usage
from tests.harness.deployment import Deployment, Producer, Seen, ask, compare, deploy
from tests.servers.gunicorn import manage

pytestmark = pytest.mark.once  # It brings its own database, so one run is enough.

CLIENTS, REQUESTS = 24, 6
SHOW = """
from django.db import connection, transaction
def level():
    with connection.cursor() as cursor:
        cursor.execute("SHOW transaction_isolation")
        return cursor.fetchone()[0]
print(level())
with transaction.atomic():
    print(level())
"""


@pytest.fixture
def producer() -> Producer:
    return Producer()


@pytest.fixture
def deployment(producer: Producer) -> Iterator[Deployment]:
    with deploy("postgresql") as made:
        made.ollama.answer("/api/generate", producer)
        yield made


def stricter(deployment: Deployment, level: str) -> None:
    name = deployment.url.rpartition("/")[2]
    deployment.query(f"ALTER DATABASE {name} SET default_transaction_isolation = '{level}'")


@pytest.mark.parametrize("level", ["repeatable read", "serializable"])
def test_all_requests_are_served(deployment: Deployment, producer: Producer, level: str) -> None:
    stricter(deployment, level)
    seen: list[Seen] = []

    def client(first: int) -> None:
        seen.extend(
            ask(server.url, deployment.key, first + turn, timeout=60) for turn in range(REQUESTS)
        )

    with deployment.gateway() as server:
        numbers = range(1, CLIENTS * REQUESTS, REQUESTS)
        clients = [threading.Thread(target=client, args=(number,)) for number in numbers]
        for each in clients:
            each.start()
        for each in clients:
            each.join(120)
        log = server.log()

    assert len(seen) == CLIENTS * REQUESTS
    whole_with_usage(seen)
    assert "cannot be settled now" not in log and "not renewed" not in log
    deployment.books_balance()
    compare(seen, producer, deployment.rows())


@pytest.mark.parametrize("pool", ["0", "8"])
def test_every_statement_runs_as_read_committed(deployment: Deployment, pool: str) -> None:
    stricter(deployment, "serializable")

    done = manage({**deployment.env, "DATABASE_POOL_SIZE": pool}, "shell", "-v", "0", "-c", SHOW)

    assert done.stdout.split("\n")[:2] == ["read committed"] * 2, done.stderr
