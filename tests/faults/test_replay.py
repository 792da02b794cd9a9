"""The journal of a process that exited is replayed by others: each settlement is billed once."""

import random
import shutil
import time
from pathlib import Path

import pytest

from tests.faults.load import Streams, whole_with_usage
from tests.faults.test_crash_loop import SEED, SETTLED_WITHIN, STREAMS, Victim, wait_for_death
from tests.harness.deployment import Deployment, Producer, Seen, compare, deploy, until
from tests.servers.gunicorn import Gunicorn

pytestmark = pytest.mark.once  # It brings its own databases, so one run is enough.


@pytest.fixture
def dice() -> random.Random:
    print(f"\nSEED={SEED}", end=" ")
    return random.Random(SEED)


def endings_in_the_journal(deployment: Deployment, server: Gunicorn) -> list[Seen]:
    """Let streams end while the database is away; return what their clients saw."""
    assert deployment.postgres
    streams = Streams(deployment, server.url, STREAMS, pieces=100)
    deployment.postgres.go_down()
    seen = streams.wait()
    whole_with_usage(seen)
    assert deployment.journal_lines() == STREAMS
    return seen


def test_a_crash_during_a_journal_replay_bills_each_settlement_once(dice: random.Random) -> None:
    """A line is settled, but its file is still there: the next worker takes the file over."""
    producer = Producer()
    with deploy("postgresql") as deployment:
        assert deployment.postgres
        deployment.ollama.answer("/api/generate", producer)
        victim = Victim(deployment, dice, 0.5, "in_replay")
        try:
            seen = endings_in_the_journal(deployment, victim.server)
            deployment.postgres.come_up()
            wait_for_death(victim, "in_replay")
            victim.disarm()
            deployment.books_balance(SETTLED_WITHIN)
        finally:
            victim.server.stop()

        print(f"\n{dict(victim.deaths)}", end=" ")
        compare(seen, producer, deployment.rows())


def test_many_processes_that_replay_one_journal_at_once_bill_it_once() -> None:
    """Two gateways start beside it. Copies under the names of other exited processes make the race
    certain."""
    producer = Producer()
    with deploy("postgresql") as deployment:
        assert deployment.postgres
        deployment.ollama.answer("/api/generate", producer)
        with deployment.gateway() as server:
            seen = endings_in_the_journal(deployment, server)
            server.kill()
        files = list((deployment.home / "journal").glob("*.ndjson"))
        for number in range(1, 9):
            for path in files:
                shutil.copy(path, as_of_a_dead_worker(path, number))
        deployment.postgres.come_up()
        with (
            deployment.gateway(GATEWAY_WORKERS="4") as one,
            deployment.gateway(GATEWAY_WORKERS="4") as other,
        ):
            began = time.monotonic()
            until(lambda: not deployment.journal_lines(), 60)
            took = time.monotonic() - began
            deployment.books_balance(SETTLED_WITHIN)
            logs = one.log() + other.log()

        print(f"\n9 copies of {STREAMS} endings, 8 workers: replayed in {took:.1f} s", end=" ")
        assert "Traceback" not in logs
        assert {row.outcome for row in deployment.rows().values()} == {"complete"}
        compare(seen, producer, deployment.rows())


def as_of_a_dead_worker(path: Path, number: int) -> Path:
    """The name of the file if its process had started a moment earlier."""
    worker, _dot, rest = path.name.partition(".")
    process, _dash, started = worker.rpartition("-")
    return path.with_name(f"{process}-{int(started) - number}.{number}{rest}")
