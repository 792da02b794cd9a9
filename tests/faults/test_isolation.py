"""A database may have a stricter isolation level of its own: every request is still served."""

import threading
from collections.abc import Iterator

import pytest

from tests.faults.load import whole_with_usage
from tests.faults.site import Producer, Seen, Site, ask, compare, site
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
def place(producer: Producer) -> Iterator[Site]:
    with site("postgresql") as made:
        made.ollama.answer("/api/generate", producer)
        yield made


def stricter(place: Site, level: str) -> None:
    name = place.url.rpartition("/")[2]
    place.query(f"ALTER DATABASE {name} SET default_transaction_isolation = '{level}'")


@pytest.mark.parametrize("level", ["repeatable read", "serializable"])
def test_all_requests_are_served(place: Site, producer: Producer, level: str) -> None:
    stricter(place, level)
    seen: list[Seen] = []

    def client(first: int) -> None:
        seen.extend(
            ask(server.url, place.key, first + turn, timeout=60) for turn in range(REQUESTS)
        )

    with place.gateway() as server:
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
    place.books_balance()
    compare(seen, producer, place.rows())


@pytest.mark.parametrize("pool", ["0", "8"])
def test_every_statement_runs_as_read_committed(place: Site, pool: str) -> None:
    stricter(place, "serializable")

    done = manage({**place.env, "DATABASE_POOL_SIZE": pool}, "shell", "-v", "0", "-c", SHOW)

    assert done.stdout.split("\n")[:2] == ["read committed"] * 2, done.stderr
