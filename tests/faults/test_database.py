"""PostgreSQL goes away, hangs, becomes read-only or fills up: nothing is lost or billed twice.

Each test stops, fills or disconnects a database of its own.
"""

import contextlib
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from tests.faults.conftest import percentile, thread_count
from tests.faults.load import (
    Streams,
    ask_many,
    refused_in_time,
    served_or_refused,
    whole_with_usage,
)
from tests.harness.deployment import (
    Deployment,
    Drivers,
    Producer,
    Row,
    Seen,
    compare,
    deploy,
    fill,
    small_disk,
    until,
)
from tests.servers.gunicorn import Gunicorn
from tests.servers.postgres import Postgres

pytestmark = pytest.mark.once  # It brings its own databases, so one run is enough.

STREAMS = 8
DOWN_SECONDS = float(os.environ.get("DOWN_SECONDS", "30"))
CUTS = int(os.environ.get("CUTS", "30"))
RESTARTS = int(os.environ.get("RESTARTS", "20"))


@pytest.fixture
def producer() -> Producer:
    return Producer()


@pytest.fixture
def deployment(producer: Producer) -> Iterator[Deployment]:
    """On PostgreSQL."""
    with deploy("postgresql") as made:
        made.ollama.answer("/api/generate", producer)
        yield made


@pytest.fixture
def server(deployment: Deployment) -> Iterator[Gunicorn]:
    with deployment.gateway() as running:
        # Both workers have connections in their pools.
        whole_with_usage(ask_many(running.url, deployment.key, 16))
        yield running


def postgres_of(deployment: Deployment) -> Postgres:
    assert deployment.postgres
    return deployment.postgres


@pytest.fixture
def earlier(deployment: Deployment, server: Gunicorn) -> dict[str, Row]:
    """The usage rows from before the test began."""
    return deployment.rows()


def new_rows(deployment: Deployment, earlier: dict[str, Row]) -> dict[str, Row]:
    return {name: row for name, row in deployment.rows().items() if name not in earlier}


# --- It goes away --------------------------------------------------------------------------------


def test_streams_end_well_while_the_database_is_down(
    deployment: Deployment, server: Gunicorn, producer: Producer, earlier: dict[str, Row]
) -> None:
    streams = Streams(deployment, server.url, STREAMS, pieces=80)
    postgres_of(deployment).go_down()
    went = time.monotonic()
    refused = ask_many(server.url, deployment.key, 40)
    threads = sum(map(thread_count, server.worker_pids()))
    seen = streams.wait()
    kept = deployment.journal_lines()
    time.sleep(max(0.0, DOWN_SECONDS - (time.monotonic() - went)))
    postgres_of(deployment).come_up()
    back = time.monotonic()
    recovered = until(lambda: [s for s in ask_many(server.url, deployment.key, 1) if s.done])
    until(lambda: not deployment.journal_lines())
    print(f"\n{threads} threads; {kept} endings in the journal; down {DOWN_SECONDS:.0f} s;", end="")
    print(f" drained {time.monotonic() - back:.1f} s after its return", end=" ")

    refused_in_time(refused, 15)
    whole_with_usage(seen)
    assert kept >= STREAMS
    deployment.books_balance()
    compare(refused + seen + recovered, producer, new_rows(deployment, earlier))


def test_restarts_under_load_lose_nothing(
    deployment: Deployment, server: Gunicorn, producer: Producer, earlier: dict[str, Row]
) -> None:
    with Drivers(lambda: server.url, deployment.key, STREAMS, lambda: (10, 0.02)) as drivers:
        for _ in range(RESTARTS):
            postgres_of(deployment).restart()
            time.sleep(1)

    deployment.books_balance()
    served_or_refused(drivers.seen, at_least=3 * RESTARTS)
    compare(drivers.seen, producer, new_rows(deployment, earlier))


def test_clients_do_not_notice_cut_database_connections(
    deployment: Deployment, server: Gunicorn, producer: Producer, earlier: dict[str, Row]
) -> None:
    """pg_terminate_backend while streams run: the next settlement meets a dead connection.

    After each cut a new request is served before the next cut, so refusing everybody does not pass.
    """
    new: list[Seen] = []
    taken: list[float] = []

    def is_served() -> bool:
        new.extend(ask_many(server.url, deployment.key, 1))
        return new[-1].done

    with Drivers(lambda: server.url, deployment.key, STREAMS, lambda: (10, 0.02)) as drivers:
        for _ in range(CUTS):
            assert postgres_of(deployment).cut_connections("gateway")
            began = time.monotonic()
            until(is_served, 60)
            taken.append(time.monotonic() - began)

    print(f"\n{CUTS} times all connections cut; the next was served", end=" ")
    print(f"{percentile(taken, 50):.1f} s later (p50), {max(taken):.1f} s at most", end=" ")
    deployment.books_balance()
    served_or_refused(new + drivers.seen, at_least=2 * CUTS)
    compare(new + drivers.seen, producer, new_rows(deployment, earlier))


def test_a_hung_database_gives_503_in_time_and_threads_become_free(
    deployment: Deployment, server: Gunicorn, producer: Producer, earlier: dict[str, Row]
) -> None:
    """SIGSTOP: connections stay open, but the server does not respond."""
    streams = Streams(deployment, server.url, STREAMS, pieces=40)
    postgres_of(deployment).hang()
    try:
        refused = ask_many(server.url, deployment.key, 40)
        refused += ask_many(server.url, deployment.key, 4)
        seen = streams.wait()
        alive = ask_health(server)
    finally:
        postgres_of(deployment).resume()

    back = until(lambda: [one for one in ask_many(server.url, deployment.key, 1) if one.done], 60)
    refused_in_time(refused, 10, most=15)
    slowest = max(one.seconds for one in seen)
    print(f"the slowest of the streams of 2 s took {slowest:.1f} s", end=" ")
    assert alive < 10
    whole_with_usage(seen)
    deployment.books_balance()
    compare(refused + seen + back, producer, new_rows(deployment, earlier))


def ask_health(server: Gunicorn) -> float:
    began = time.monotonic()
    assert server._is_healthy()
    return time.monotonic() - began


def test_a_read_only_database_is_treated_as_unavailable(
    deployment: Deployment, server: Gunicorn, producer: Producer, earlier: dict[str, Row]
) -> None:
    """As after a failover to a standby."""
    streams = Streams(deployment, server.url, STREAMS, pieces=40)
    read_only = "ALTER DATABASE gateway SET default_transaction_read_only = "
    postgres_of(deployment).execute(read_only + "on")
    postgres_of(deployment).cut_connections("gateway")
    refused = ask_many(server.url, deployment.key, 8)
    seen = streams.wait()
    postgres_of(deployment).execute(read_only + "off")
    postgres_of(deployment).cut_connections("gateway")

    refused_in_time(refused, 15)
    whole_with_usage(seen)
    until(lambda: not deployment.journal_lines())
    deployment.books_balance()
    compare(refused + seen, producer, new_rows(deployment, earlier))


# --- Its disk is full ----------------------------------------------------------------------------

DISK_MB = 128


def test_a_full_disk_of_postgresql_loses_nothing(producer: Producer) -> None:
    """PostgreSQL refuses writes or stops; both are treated as an unavailable database.

    Then room is made and the server started again, as an operator would.
    """
    folder = Path(tempfile.mkdtemp(prefix="disk-"))
    folder.chmod(0o755)
    try:
        with (
            small_disk(folder / "disk", DISK_MB) as disk,
            deploy("postgresql", postgres=Postgres(data=disk / "data")) as deployment,
        ):
            deployment.ollama.answer("/api/generate", producer)
            with deployment.gateway() as server:
                fill_up_and_make_room(deployment, server, producer, disk)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def fill_up_and_make_room(
    deployment: Deployment, server: Gunicorn, producer: Producer, disk: Path
) -> None:
    postgres = postgres_of(deployment)
    whole_with_usage(first := ask_many(server.url, deployment.key, 4))
    streams = Streams(deployment, server.url, STREAMS, pieces=60)
    ballast = fill(disk, 0)
    use_up_the_log(postgres)
    refused = ask_many(server.url, deployment.key, 16)
    seen = streams.wait()
    kept = deployment.journal_lines()
    ballast.unlink()
    back = until(lambda: start_and_ask(deployment, server), 60)

    print(f"\n{kept} endings in the journal", end=" ")
    refused_in_time(refused, 15)
    whole_with_usage(seen)
    assert kept >= STREAMS
    deployment.books_balance()
    compare(first + refused + seen + back, producer, deployment.rows())


def start_and_ask(deployment: Deployment, server: Gunicorn) -> list[Seen]:
    """Start the database if it has stopped; return the requests that were served."""
    if not postgres_of(deployment).is_up:
        postgres_of(deployment).come_up()
    return [one for one in ask_many(server.url, deployment.key, 1) if one.done]


def use_up_the_log(postgres: Postgres) -> None:
    """Write until it fails: existing files still have room in them."""
    postgres.execute("CREATE UNLOGGED TABLE IF NOT EXISTS nothing (x int)")
    with contextlib.suppress(psycopg.Error):
        while True:
            postgres.execute("SELECT pg_logical_emit_message(false, '', repeat('x', 1000000))")
