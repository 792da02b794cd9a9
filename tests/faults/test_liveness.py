"""A wall clock that steps ends no running response, and lets no request pass a cap."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.faults.load import Streams, ask_many, whole_and_billed
from tests.harness.deployment import DATABASES, Deployment, Producer, deploy
from tests.servers.clock import MISSING, Clock
from tests.servers.gunicorn import manage

pytestmark = pytest.mark.once  # It brings its own databases, so one run is enough.

LEASE = 3  # Seconds, as in a deployment.
HOURS = 3600

needs_compiler = pytest.mark.skipif(bool(MISSING), reason=MISSING)


@pytest.fixture
def producer() -> Producer:
    return Producer()


@pytest.fixture(params=DATABASES)
def deployment(request: pytest.FixtureRequest, producer: Producer) -> Iterator[Deployment]:
    with deploy(request.param) as made:
        made.ollama.answer("/api/generate", producer)
        yield made


@pytest.fixture
def clock(tmp_path: Path) -> Clock:
    return Clock(tmp_path)


@needs_compiler
@pytest.mark.parametrize("shift", [-2 * HOURS, 2 * HOURS])
def test_a_clock_step_ends_no_running_stream(
    deployment: Deployment, producer: Producer, clock: Clock, shift: int
) -> None:
    """On SQLite the database's clock steps, too."""
    deployment.more = {**deployment.more, **clock.env}
    with deployment.gateway() as server:
        time.sleep(LEASE / 2 + 1)
        streams = Streams(deployment, server.url, 8, pieces=150)
        time.sleep(1)
        clock.set(shift)
        seen = streams.wait()
        log = server.log()

    assert "was abandoned" not in log
    whole_and_billed(deployment, producer, seen)


MONTH = 31 * 24 * HOURS
MOST = 12  # Requests that may pass before the cap is reached.
CAP = """
from accounts.models import Account
from billing import ledger
cap = ledger.open_budget(Account.objects.get(), "tokens", "month")
ledger.set_limit(cap, 4000)
"""


@needs_compiler
def test_a_cap_holds_after_the_clock_was_in_the_next_month(
    deployment: Deployment, clock: Clock
) -> None:
    """PostgreSQL has a clock of its own, which stays right; SQLite's is the gateway's."""
    made = manage(deployment.env, "shell", "--no-imports", "-c", CAP)
    assert made.returncode == 0, made.stderr
    more: dict[str, Any] = clock.env
    with deployment.gateway(**more) as server:
        before = [ask_many(server.url, deployment.key, 1)[0] for _ in range(MOST)]
        clock.set(MONTH)
        ahead = ask_many(server.url, deployment.key, 1)[0]
        clock.set(0)
        after = ask_many(server.url, deployment.key, 30)

    assert before[0].done and before[-1].status == 429, before
    assert ahead.done == (deployment.postgres is None)
    assert [one.status for one in after] == [429] * 30
    proved = manage(deployment.env, "reconcile")
    assert proved.returncode == (1 if ahead.done else 0), proved.stdout
    assert ("has not started" in proved.stdout) == ahead.done
    # At the end the deployment is reconciled with a clock beyond that month.
    deployment.more = {**deployment.more, **clock.env}
    clock.set(2 * MONTH)
