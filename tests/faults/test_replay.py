"""The journal of a process that died, replayed by others: each ending is billed once."""

import random
import shutil
import time
from pathlib import Path

import pytest

from tests.faults.load import Streams, whole_with_usage
from tests.faults.site import Producer, Seen, Site, compare, site, until
from tests.faults.test_crash_loop import SEED, SETTLED_WITHIN, STREAMS, Victim, wait_for_death
from tests.servers.gunicorn import Gunicorn

pytestmark = pytest.mark.once  # It brings its own databases, so one run is enough.


@pytest.fixture
def dice() -> random.Random:
    print(f"\nSEED={SEED}", end=" ")
    return random.Random(SEED)


def endings_in_the_journal(place: Site, server: Gunicorn) -> list[Seen]:
    """Streams that ended while the database was away, and what their clients saw of it."""
    assert place.postgres
    streams = Streams(place, server.url, STREAMS, pieces=100)
    place.postgres.go_down()
    seen = streams.wait()
    whole_with_usage(seen)
    assert place.journal_lines() == STREAMS
    return seen


def test_death_in_the_replay_of_a_journal_bills_each_ending_once(dice: random.Random) -> None:
    """A line is settled, its file is still there: the next worker takes the file over."""
    producer = Producer()
    with site("postgresql") as place:
        assert place.postgres
        place.ollama.answer("/api/generate", producer)
        victim = Victim(place, dice, 0.5, "in_replay")
        try:
            seen = endings_in_the_journal(place, victim.server)
            place.postgres.come_up()
            wait_for_death(victim, "in_replay")
            victim.disarm()
            place.books_balance(SETTLED_WITHIN)
        finally:
            victim.server.stop()

        print(f"\n{dict(victim.deaths)}", end=" ")
        compare(seen, producer, place.rows())


def test_many_who_replay_a_dead_workers_journal_at_once_bill_it_once() -> None:
    """Two gateways start beside it; copies of it under other dead names make the race certain."""
    producer = Producer()
    with site("postgresql") as place:
        assert place.postgres
        place.ollama.answer("/api/generate", producer)
        with place.gateway() as server:
            seen = endings_in_the_journal(place, server)
            server.kill()
        files = list((place.home / "journal").glob("*.ndjson"))
        for number in range(1, 9):
            for path in files:
                shutil.copy(path, as_of_a_dead_worker(path, number))
        place.postgres.come_up()
        with (
            place.gateway(GATEWAY_WORKERS="4") as one,
            place.gateway(GATEWAY_WORKERS="4") as other,
        ):
            began = time.monotonic()
            until(lambda: not place.journal_lines(), 15)
            took = time.monotonic() - began
            place.books_balance(SETTLED_WITHIN)
            logs = one.log() + other.log()

        print(f"\n9 copies of {STREAMS} endings, 8 workers: replayed in {took:.1f} s", end=" ")
        assert "Traceback" not in logs
        assert {row.outcome for row in place.rows().values()} == {"complete"}
        compare(seen, producer, place.rows())


def as_of_a_dead_worker(path: Path, number: int) -> Path:
    """The name it would have if its process had begun a moment earlier."""
    worker, _dot, rest = path.name.partition(".")
    process, _dash, started = worker.partition("-")
    return path.with_name(f"{process}-{int(started) - number}.{number}{rest}")
