"""The schema changes while the gateway serves: requests wait for a moment or get 503, never 500.

The first release has no older schema. So its last migration is reversed and applied again (it drops
and creates triggers, which takes locks), and typical later changes are made by hand: another
column, another index.
"""

import contextlib
import sqlite3
import time
from collections.abc import Iterator

import psycopg
import pytest

from tests.faults.load import served_or_refused
from tests.harness.deployment import (
    DATABASES,
    Deployment,
    Drivers,
    Producer,
    compare,
    deploy,
    until,
)
from tests.servers.gunicorn import manage

pytestmark = pytest.mark.once  # It brings both databases itself, so one run is enough.

# A stream takes 0.3 s; what a migration may add to it on a busy machine.
LONGEST = 15
ADDITIVE = [
    "ALTER TABLE token_usages ADD COLUMN future text NULL",
    "ALTER TABLE billing_hold ADD COLUMN future integer NULL",
    "ALTER TABLE billing_budget ADD COLUMN future integer NULL",
    "CREATE INDEX future_index ON token_usages (future)",
    "CREATE INDEX future_hold_index ON billing_hold (future)",
]


@pytest.fixture
def producer() -> Producer:
    return Producer()


@pytest.fixture(params=DATABASES)
def deployment(request: pytest.FixtureRequest, producer: Producer) -> Iterator[Deployment]:
    with deploy(request.param) as made:
        made.ollama.answer("/api/generate", producer)
        yield made


def migrate(deployment: Deployment, *target: str) -> float:
    began = time.monotonic()
    done = manage(deployment.env, "migrate", *target, "-v", "0", "--no-input")
    assert done.returncode == 0, done.stderr
    return time.monotonic() - began


def change_schema(deployment: Deployment, statement: str) -> int:
    """Wait for a lock for at most one second, so that writers never wait longer behind it, and
    retry. Return the number of attempts."""
    for attempt in range(1, 50):
        with contextlib.suppress(psycopg.errors.LockNotAvailable, sqlite3.OperationalError):
            if deployment.postgres:
                with psycopg.connect(deployment.url, autocommit=True) as connection:
                    connection.execute("SET lock_timeout = '1s'")
                    connection.execute(statement)
            else:
                deployment.query(statement)
            return attempt
    raise AssertionError(f"no lock was had for {statement}")


def test_a_migration_under_load_fails_no_request(
    deployment: Deployment, producer: Producer
) -> None:
    with deployment.gateway() as server:
        with Drivers(lambda: server.url, deployment.key, 8, lambda: (10, 0.02)) as drivers:
            until(lambda: len(drivers.seen) > 8, 60)
            back = migrate(deployment, "billing", "0001")
            on = migrate(deployment)
            tries = [change_schema(deployment, statement) for statement in ADDITIVE]
            after = len(drivers.seen)
            until(lambda: len(drivers.seen) > after + 16, 60)
        log = server.log()

    slowest = max(one.seconds for one in drivers.seen)
    print(f"\nback in {back:.1f} s, on in {on:.1f} s, tries for locks {tries};", end=" ")
    print(f"the slowest of {len(drivers.seen)} streams took {slowest:.1f} s", end=" ")
    assert "Traceback" not in log, log[-3000:]
    served_or_refused(drivers.seen, at_least=30)
    assert slowest < LONGEST
    deployment.books_balance()
    compare(drivers.seen, producer, deployment.rows())


def test_the_guards_are_back_after_a_migration(deployment: Deployment) -> None:
    migrate(deployment, "billing", "0001")
    migrate(deployment)

    with pytest.raises(Exception, match="append-only"):
        deployment.query("UPDATE model_prices SET prompt_price = 0")
