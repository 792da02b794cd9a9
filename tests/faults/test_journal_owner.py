"""A journal belongs to a database: another database leaves it alone, a restored copy settles from
it.
"""

import time
from collections.abc import Iterator
from decimal import Decimal

import pytest

from tests.faults.load import Streams, whole_with_usage
from tests.harness.deployment import Deployment, Producer, Seen, deploy, until
from tests.servers.gunicorn import manage

pytestmark = pytest.mark.once  # It brings its own databases, so one run is enough.

STREAMS = 8


@pytest.fixture
def deployment() -> Iterator[Deployment]:
    with deploy("postgresql") as made:
        made.ollama.answer("/api/generate", Producer())
        yield made


def ended_while_away(deployment: Deployment) -> list[Seen]:
    """Let streams end while PostgreSQL is away, then kill the gateway: all settlements are in the
    journal."""
    assert deployment.postgres
    with deployment.gateway() as server:
        streams = Streams(deployment, server.url, STREAMS, pieces=60)
        time.sleep(1)
        deployment.postgres.go_down()
        seen = streams.wait()
        until(lambda: deployment.journal_lines() == STREAMS)
        server.kill()
    whole_with_usage(seen)
    return seen


def billed_as_told(deployment: Deployment, seen: list[Seen]) -> None:
    rows = deployment.rows()
    for one in seen:
        assert one.usage
        assert rows[one.request_id].cost == Decimal(one.usage["cost"])
        assert rows[one.request_id].outcome == "complete"


def elsewhere(deployment: Deployment) -> Deployment:
    """An empty second database with the same journal folder, as in a shell without DATABASE_URL."""
    url = f"sqlite:///{deployment.home / 'other.sqlite3'}"
    other = Deployment(
        deployment.home, url, deployment.ollama, key=deployment.key, more=deployment.more
    )
    assert manage(other.env, "migrate", "--no-input").returncode == 0
    return other


def test_no_other_database_empties_the_journal(deployment: Deployment) -> None:
    """Neither settle_holds with the wrong DATABASE_URL nor a gateway started on trial."""
    assert deployment.postgres
    seen = ended_while_away(deployment)
    other = elsewhere(deployment)

    told = manage(other.env, "settle_holds")
    with other.gateway() as trial:
        time.sleep(4)
        log = trial.log()

    assert told.returncode == 0, told.stderr
    assert f"{STREAMS} lines of the journal are of another database" in told.stdout
    assert "is of another database" in log and deployment.journal_lines() == STREAMS
    deployment.postgres.come_up()
    settled = manage(deployment.env, "settle_holds")
    assert f"{STREAMS} requests settled from the journal" in settled.stdout, settled.stdout
    deployment.books_balance()
    billed_as_told(deployment, seen)


def test_a_restored_backup_bills_what_it_does_not_know(deployment: Deployment) -> None:
    assert deployment.postgres
    deployment.postgres.execute("CREATE DATABASE restored TEMPLATE gateway")
    seen = ended_while_away(deployment)
    deployment.postgres.come_up()
    url = deployment.postgres.url("restored")
    restored = Deployment(
        deployment.home,
        url,
        deployment.ollama,
        deployment.postgres,
        deployment.key,
        more=deployment.more,
    )

    settled = manage(restored.env, "settle_holds")

    assert settled.returncode == 0, settled.stderr
    assert f"{STREAMS} requests settled from the journal" in settled.stdout, settled.stdout
    assert not deployment.journal_lines()
    restored.books_balance()
    billed_as_told(restored, seen)
