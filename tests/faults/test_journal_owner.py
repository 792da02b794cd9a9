"""A journal belongs to a database: another one leaves it alone, a restored one settles from it."""

import time
from collections.abc import Iterator
from decimal import Decimal

import pytest

from tests.faults.load import Streams, whole_with_usage
from tests.faults.site import Producer, Seen, Site, site, until
from tests.servers.gunicorn import manage

pytestmark = pytest.mark.once  # It brings its own databases, so one run is enough.

STREAMS = 8


@pytest.fixture
def place() -> Iterator[Site]:
    with site("postgresql") as made:
        made.ollama.answer("/api/generate", Producer())
        yield made


def ended_while_away(place: Site) -> list[Seen]:
    """Let streams end while PostgreSQL is away, and then the gateway die: all is in the journal."""
    assert place.postgres
    with place.gateway() as server:
        streams = Streams(place, server.url, STREAMS, pieces=60)
        time.sleep(1)
        place.postgres.go_down()
        seen = streams.wait()
        until(lambda: place.journal_lines() == STREAMS)
        server.kill()
    whole_with_usage(seen)
    return seen


def billed_as_told(place: Site, seen: list[Seen]) -> None:
    rows = place.rows()
    for one in seen:
        assert one.usage
        assert rows[one.request_id].cost == Decimal(one.usage["cost"])
        assert rows[one.request_id].outcome == "complete"


def elsewhere(place: Site) -> Site:
    """Another database, empty, with the same journal folder: a shell without DATABASE_URL."""
    url = f"sqlite:///{place.home / 'other.sqlite3'}"
    other = Site(place.home, url, place.ollama, key=place.key, more=place.more)
    assert manage(other.env, "migrate", "--no-input").returncode == 0
    return other


def test_no_other_database_empties_the_journal(place: Site) -> None:
    """Neither settle_holds in the wrong shell, nor a gateway that somebody tries out."""
    assert place.postgres
    seen = ended_while_away(place)
    other = elsewhere(place)

    told = manage(other.env, "settle_holds")
    with other.gateway() as trial:
        time.sleep(4)
        log = trial.log()

    assert told.returncode == 0, told.stderr
    assert f"{STREAMS} lines of the journal are of another database" in told.stdout
    assert "is of another database" in log and place.journal_lines() == STREAMS
    place.postgres.come_up()
    settled = manage(place.env, "settle_holds")
    assert f"{STREAMS} endings settled from the journal" in settled.stdout, settled.stdout
    place.books_balance()
    billed_as_told(place, seen)


def test_a_restored_backup_bills_what_it_does_not_know(place: Site) -> None:
    assert place.postgres
    place.postgres.execute("CREATE DATABASE restored TEMPLATE gateway")
    seen = ended_while_away(place)
    place.postgres.come_up()
    url = place.postgres.url("restored")
    restored = Site(place.home, url, place.ollama, place.postgres, place.key, more=place.more)

    settled = manage(restored.env, "settle_holds")

    assert settled.returncode == 0, settled.stderr
    assert f"{STREAMS} endings settled from the journal" in settled.stdout, settled.stdout
    assert not place.journal_lines()
    restored.books_balance()
    billed_as_told(restored, seen)
