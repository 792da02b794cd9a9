"""A budget that is created while requests settle counts each usage row once."""

import threading
from typing import Any

import pytest
from django.db import connection

from billing import ledger
from billing.models import Budget, ModelPrice
from tests.billing.test_ledger import books_balance, finish, in_threads, reserve
from tests.harness.callers import Caller

pytestmark = pytest.mark.django_db(transaction=True)


def create_cap(alice: Caller, **more: Any) -> Budget:
    return ledger.open_budget(alice.account, Budget.Unit.TOKENS, Budget.Window.TOTAL, **more)


def test_creation_waits_for_a_settlement_that_is_in_progress(
    alice: Caller, priced: ModelPrice, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A settlement that has read the budgets, but has not committed, would miss the new one."""
    if connection.vendor == "sqlite":
        pytest.skip("SQLite has one writer")
    hold = reserve(alice, priced)
    in_progress, resume = threading.Event(), threading.Event()
    roll_up = ledger._roll_up

    def pause(row: Any) -> None:
        in_progress.set()
        resume.wait(5)
        roll_up(row)

    monkeypatch.setattr(ledger, "_roll_up", pause)

    def settle() -> None:
        finish(hold)
        connection.close()

    def create_meanwhile() -> None:
        create_cap(alice)
        connection.close()

    threads = [threading.Thread(target=settle), threading.Thread(target=create_meanwhile)]
    threads[0].start()
    assert in_progress.wait(5)
    threads[1].start()
    threads[1].join(0.5)
    resume.set()
    for thread in threads:
        thread.join(10)

    assert create_cap(alice).spent == 15 and books_balance()


def test_concurrent_creations_of_a_budget_create_one(alice: Caller, priced: ModelPrice) -> None:
    in_threads(8, lambda: create_cap(alice))

    assert Budget.objects.filter(unit="tokens").count() == 1
