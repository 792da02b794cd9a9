"""A budget that is created while requests settle counts each usage row once."""

import threading
from typing import Any

import pytest
from django.db import connection

from billing import ledger
from billing.models import Budget, ModelPrice
from tests.billing.test_ledger import (
    books_balance,
    finish,
    in_threads,
    reserve,
    roll_up_locked,
    wait_until_a_lock_is_waited_for,
)
from tests.harness.callers import Caller

pytestmark = pytest.mark.django_db(transaction=True)


def create_cap(alice: Caller, **more: Any) -> Budget:
    return ledger.open_budget(alice.account, Budget.Unit.TOKENS, Budget.Window.TOTAL, **more)


def test_creation_waits_for_a_settlement_that_is_in_progress(
    alice: Caller, priced: ModelPrice
) -> None:
    """A settlement that has read the budgets, but has not committed, would miss the new one."""
    if connection.vendor == "sqlite":
        pytest.skip("SQLite has one writer")
    hold = reserve(alice, priced)

    def settle() -> None:
        finish(hold)
        connection.close()

    def create_meanwhile() -> None:
        create_cap(alice)
        connection.close()

    threads = [threading.Thread(target=settle), threading.Thread(target=create_meanwhile)]
    with roll_up_locked(alice, priced):
        threads[0].start()
        wait_until_a_lock_is_waited_for()
        threads[1].start()
        threads[1].join(0.5)
    for thread in threads:
        thread.join(10)

    assert create_cap(alice).spent == 15 and books_balance()


def test_concurrent_creations_of_a_budget_create_one(alice: Caller, priced: ModelPrice) -> None:
    in_threads(8, lambda: create_cap(alice))

    assert Budget.objects.filter(unit="tokens").count() == 1
