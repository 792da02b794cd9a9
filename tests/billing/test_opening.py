"""Opening a budget while others settle: it counts every row once, whoever was first."""

import threading
from typing import Any

import pytest
from django.db import connection

from billing import ledger
from billing.models import Budget, ModelPrice
from tests.billing.test_ledger import books_balance, finish, in_threads, reserve
from tests.harness.callers import Caller

pytestmark = pytest.mark.django_db(transaction=True)


def open_cap(alice: Caller, **more: Any) -> Budget:
    return ledger.open_budget(alice.account, Budget.Unit.TOKENS, Budget.Window.TOTAL, **more)


def test_a_settling_that_is_half_way_is_waited_for(
    alice: Caller, priced: ModelPrice, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the look for budgets and the commit: there a new one would be missed."""
    if connection.vendor == "sqlite":
        pytest.skip("SQLite has one writer")
    hold = reserve(alice, priced)
    half_way, go_on = threading.Event(), threading.Event()
    roll_up = ledger._roll_up

    def pause(row: Any) -> None:
        half_way.set()
        go_on.wait(5)
        roll_up(row)

    monkeypatch.setattr(ledger, "_roll_up", pause)

    def settle() -> None:
        finish(hold)
        connection.close()

    def open_meanwhile() -> None:
        open_cap(alice)
        connection.close()

    threads = [threading.Thread(target=settle), threading.Thread(target=open_meanwhile)]
    threads[0].start()
    assert half_way.wait(5)
    threads[1].start()
    threads[1].join(0.5)
    go_on.set()
    for thread in threads:
        thread.join(10)

    assert open_cap(alice).spent == 15 and books_balance()


def test_many_who_open_the_same_budget_get_one(alice: Caller, priced: ModelPrice) -> None:
    in_threads(8, lambda: open_cap(alice))

    assert Budget.objects.filter(unit="tokens").count() == 1
