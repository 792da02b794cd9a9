"""PostgreSQL's functions are installed by `migrate`, and commit as durably as they need to."""

import pytest
from django.db import connection

from billing import functions
from billing.models import ModelPrice
from tests.billing.test_ledger import finish, reserve
from tests.harness.callers import Caller

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def only_on_postgresql() -> None:
    if connection.vendor != "postgresql":
        pytest.skip("SQLite has no functions")


def durability() -> str:
    with connection.cursor() as cursor:
        cursor.execute("SHOW synchronous_commit")
        return str(cursor.fetchone()[0])


def test_migrate_replaces_a_function_of_another_version() -> None:
    assert not functions.missing(connection)
    changed = {"ledger_hold": functions.bodies()["ledger_hold"] + " "}
    functions.install(connection, changed)
    assert functions.missing(connection) == ["ledger_hold"]

    functions.install_after_migrate(using="default")

    assert not functions.missing(connection)


def test_a_hold_does_not_wait_for_the_disk_and_a_settlement_does(
    alice: Caller, priced: ModelPrice
) -> None:
    """Both run in the test's transaction here, which keeps what the function set."""
    hold = reserve(alice, priced)
    assert durability() == "off"

    with connection.cursor() as cursor:
        cursor.execute("SET LOCAL synchronous_commit = on")
    finish(hold)

    assert durability() == "on"
