"""`reconcile` while the gateway serves, and after a number was changed in the database."""

import time
from collections.abc import Iterator
from uuid import UUID

import pytest

from tests.faults.load import served_or_refused
from tests.harness.deployment import DATABASES, Deployment, Drivers, Producer, compare, deploy
from tests.servers.gunicorn import manage

pytestmark = pytest.mark.once  # It brings both databases itself, so one run is enough.


@pytest.fixture
def producer() -> Producer:
    return Producer()


@pytest.fixture(params=DATABASES)
def deployment(request: pytest.FixtureRequest, producer: Producer) -> Iterator[Deployment]:
    with deploy(request.param) as made:
        made.ollama.answer("/api/generate", producer)
        yield made


def test_reconcile_sees_one_moment_of_a_gateway_that_serves(
    deployment: Deployment, producer: Producer
) -> None:
    """Otherwise it would see a settled hold before its row, and raise a false alarm."""
    open_meanwhile, rows = [], []
    with (
        deployment.gateway() as server,
        Drivers(lambda: server.url, deployment.key, 8, lambda: (5, 0.01)) as drivers,
    ):
        for _ in range(5):
            time.sleep(0.5)
            before = len(deployment.rows())
            proved = manage(deployment.env, "reconcile")
            assert proved.returncode == 0, proved.stdout
            open_meanwhile.append(deployment.open_holds())
            rows.append(len(deployment.rows()) - before)

    print(f"\nrows written while it read: {rows}; open holds after: {open_meanwhile}", end=" ")
    assert all(rows), "nothing was written meanwhile, so nothing was proved"
    deployment.books_balance()
    served_or_refused(drivers.seen, at_least=20)
    compare(drivers.seen, producer, deployment.rows())


WITHOUT_GUARD = {
    "sqlite": "DROP TRIGGER token_usages_update",
    "postgresql": "ALTER TABLE token_usages DISABLE TRIGGER token_usages_rows",
}
GUARD_MISSING = "missing or switched off"
CHANGE = "UPDATE token_usages SET {} WHERE request_id = '{{id}}'"
HOLD = "UPDATE billing_hold SET state = '{}' WHERE request_id = '{{id}}'"
# A change to the tables, the change that reverses it, and the line that reports it. The database
# refuses a cost that is not tokens times prices, so both are changed.
TAMPERING = [
    (
        CHANGE.format("completion_price = completion_price - 1, cost = cost - completion_tokens"),
        CHANGE.format("completion_price = completion_price + 1, cost = cost + completion_tokens"),
        "usage row {id}: prices differ",
    ),
    (
        CHANGE.format("prompt_tokens = prompt_tokens - 1, cost = cost - prompt_price"),
        CHANGE.format("prompt_tokens = prompt_tokens + 1, cost = cost + prompt_price"),
        "roll-up",
    ),
    (HOLD.format("open"), HOLD.format("settled"), "usage row {id}: without a hold that has ended"),
]


def test_reconcile_names_the_row_that_somebody_changed(deployment: Deployment) -> None:
    with (
        deployment.gateway() as server,
        Drivers(lambda: server.url, deployment.key, 2, lambda: (3, 0.0)) as drivers,
    ):
        time.sleep(1)
    assert any(one.done for one in drivers.seen)
    deployment.books_balance()
    found = deployment.query("SELECT request_id FROM token_usages WHERE billed ORDER BY 1 LIMIT 1")
    name = str(found[0][0])
    without_guard = WITHOUT_GUARD["postgresql" if deployment.postgres else "sqlite"]

    with pytest.raises(Exception, match="append-only"):
        deployment.query(TAMPERING[0][0].format(id=name))
    deployment.query(without_guard)
    with pytest.raises(Exception, match="cost_follows_from_row"):
        deployment.query(CHANGE.format("cost = cost - 1").format(id=name))
    for spoil, mend, said in TAMPERING:
        deployment.query(spoil.format(id=name))
        proved = manage(deployment.env, "reconcile")
        assert proved.returncode == 1, (spoil, proved.stdout)
        assert said.format(id=UUID(name)) in proved.stdout, (spoil, proved.stdout)
        deployment.query(mend.format(id=name))
    assert GUARD_MISSING in manage(deployment.env, "reconcile").stdout
    assert manage(deployment.env, "migrate", "--no-input").returncode == 0
    deployment.books_balance()
