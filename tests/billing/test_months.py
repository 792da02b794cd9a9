"""A monthly cap at the end of a month, when requests end in any order."""

import contextlib
import threading
import time
from datetime import UTC, datetime
from typing import Any

import pytest
from django.db import connection

from billing import ledger
from billing.models import Budget, Hold, ModelPrice
from billing.months import months_held
from gateway.metering import CapReached
from tests.billing.test_ledger import DECEMBER, NOVEMBER, books_balance, finish, in_threads, reserve
from tests.harness.callers import Caller, database_time, set_price


@pytest.fixture
def cap(alice: Caller) -> Budget:
    """A cap of 1,000 tokens a month."""
    with database_time(NOVEMBER):
        cap = ledger.open_budget(alice.account, Budget.Unit.TOKENS, Budget.Window.MONTH)
    ledger.set_limit(cap, 1000)
    return cap


def spent(cap: Budget) -> dict[str, int]:
    """Return what is spent in each month that has a row."""
    return dict(cap.periods.order_by("period").values_list("period", "spent"))


def held(cap: Budget) -> dict[str, int]:
    return dict(cap.periods.order_by("period").values_list("period", "held"))


def test_a_request_counts_in_the_month_of_its_usage_row(
    alice: Caller, priced: ModelPrice, cap: Budget
) -> None:
    holds = [reserve(alice, priced, now=NOVEMBER) for _ in range(3)]

    for hold, now in zip(holds, [NOVEMBER, DECEMBER, NOVEMBER], strict=True):
        finish(hold, now=now)

    assert spent(cap) == {"2026-11": 30, "2026-12": 15} and books_balance()


def test_discarding_a_hold_releases_it_in_every_month(
    alice: Caller, priced: ModelPrice, cap: Budget
) -> None:
    hold = reserve(alice, priced, now=NOVEMBER)
    assert any(held(cap).values()) and alice.wallet.held > 0

    assert ledger.discard(hold.pk) and not ledger.discard(hold.pk)

    assert not any(held(cap).values()) and not any(spent(cap).values())
    assert alice.wallet.held == 0 and not Hold.objects.exists() and books_balance()


def test_a_hold_at_the_end_of_a_month_must_fit_the_next_month_too(
    alice: Caller, priced: ModelPrice, cap: Budget
) -> None:
    finish(reserve(alice, priced, now=DECEMBER), prompt=900, completion=0, now=DECEMBER)

    with pytest.raises(CapReached, match=r"up to 200 \(tokens\)"):
        reserve(alice, priced, now=NOVEMBER)

    assert spent(cap)["2026-12"] == 900 and books_balance()


def test_holds_of_the_last_month_reduce_what_the_new_month_has_left(
    alice: Caller, priced: ModelPrice, cap: Budget
) -> None:
    """Otherwise a month could be used up while requests of the last month are settled in it."""
    late = [reserve(alice, priced, now=NOVEMBER) for _ in range(4)]
    assert held(cap) == {"2026-11": 800, "2026-12": 800}

    reserve(alice, priced, now=DECEMBER)
    with pytest.raises(CapReached):
        reserve(alice, priced, now=DECEMBER)
    for hold in late:
        finish(hold, 100, 100, now=DECEMBER)

    assert spent(cap) == {"2026-11": 0, "2026-12": 800}
    assert held(cap) == {"2026-11": 0, "2026-12": 200} and books_balance()


def test_a_hold_early_in_a_month_is_held_in_that_month_only(
    alice: Caller, priced: ModelPrice, cap: Budget
) -> None:
    reserve(alice, priced, now=DECEMBER)

    assert held(cap) == {"2026-11": 0, "2026-12": 200}


@pytest.mark.parametrize("ahead", [DECEMBER, datetime(2027, 1, 15, tzinfo=UTC)])
def test_a_clock_that_was_ahead_lets_no_request_exceed_a_cap(
    alice: Caller, priced: ModelPrice, cap: Budget, ahead: datetime
) -> None:
    """One request is settled with the clock in a later month. Then the clock is corrected."""
    for _ in range(5):
        finish(reserve(alice, priced, now=NOVEMBER), 100, 100, now=NOVEMBER)
    finish(reserve(alice, priced, now=ahead), 1, 1, now=ahead)

    for _ in range(30):
        with pytest.raises(CapReached):
            reserve(alice, priced, now=NOVEMBER)
    assert not books_balance(NOVEMBER) and books_balance(ahead)


@pytest.mark.django_db(transaction=True)
def test_concurrent_requests_fill_a_month_exactly(
    alice: Caller, priced: ModelPrice, cap: Budget
) -> None:
    """The first requests create the row of the month. Later requests wait for that row while one is
    settled, and are compared with the limit after that."""
    running = reserve(alice, priced, now=DECEMBER)
    admitted: list[Hold] = []

    def request() -> None:
        with contextlib.suppress(CapReached):
            admitted.append(reserve(alice, priced))

    with database_time(DECEMBER):
        in_threads(8, request)
        assert len(admitted) == 4
        finish(running, 100, 100)
        in_threads(8, request)

    assert len(admitted) == 4 and held(cap)["2026-12"] == 800 and books_balance()


@pytest.mark.django_db(transaction=True)
def test_a_hold_that_waits_for_a_settlement_counts_what_it_spent(
    alice: Caller, priced: ModelPrice, cap: Budget, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cap is 1,000. A settlement of 500 is not committed, and two holds of 500 wait for it."""
    if connection.vendor == "sqlite":
        pytest.skip("SQLite has one writer")
    running = reserve(alice, priced, prompt=300, completion=300, now=DECEMBER)
    charged, resume = threading.Event(), threading.Event()
    roll_up, admitted = ledger._roll_up, []

    def pause(row: Any) -> None:
        charged.set()
        resume.wait(5)
        roll_up(row)

    def settle() -> None:
        finish(running, 250, 250)

    def request() -> None:
        charged.wait(5)
        with contextlib.suppress(CapReached):
            admitted.append(reserve(alice, priced, prompt=250, completion=250))

    def resume_later() -> None:
        charged.wait(5)
        time.sleep(0.5)
        resume.set()

    monkeypatch.setattr(ledger, "_roll_up", pause)
    work = iter([settle, request, request, resume_later])
    with database_time(DECEMBER):
        in_threads(4, lambda: next(work)())

    assert len(admitted) == 1 and books_balance()


def test_a_clock_that_was_years_ahead_does_not_use_up_a_cap(
    alice: Caller, priced: ModelPrice, cap: Budget
) -> None:
    finish(reserve(alice, priced), now=datetime(2031, 1, 1, tzinfo=UTC))

    finish(reserve(alice, priced, now=DECEMBER), now=DECEMBER)

    assert spent(cap) == {"2026-11": 0, "2026-12": 15, "2031-01": 15}


def test_a_request_in_december_may_be_held_in_january() -> None:
    assert months_held(datetime(2026, 12, 31, 23, tzinfo=UTC)) == ["2026-12", "2027-01"]
    assert months_held(datetime(2027, 1, 28, tzinfo=UTC)) == ["2027-01"]


def test_a_cap_that_is_created_early_in_a_month_counts_the_last_month_too(
    alice: Caller, priced: ModelPrice
) -> None:
    """A settlement that read the clock in the last month may be written after the cap."""
    finish(reserve(alice, priced, now=NOVEMBER), now=NOVEMBER)
    waiting = reserve(alice, priced, now=NOVEMBER)
    with database_time(DECEMBER):
        cap = ledger.open_budget(alice.account, Budget.Unit.TOKENS, Budget.Window.MONTH)

    finish(waiting, now=NOVEMBER)

    assert spent(cap) == {"2026-11": 30, "2026-12": 0} and books_balance()


def test_a_rejection_writes_small_amounts_without_an_exponent(alice: Caller) -> None:
    cheap = set_price("llama3", "0.0001")
    with database_time(DECEMBER):
        ledger.open_budget(alice.account, Budget.Unit.MONEY, Budget.Window.MONTH)

    with pytest.raises(CapReached, match=r"up to 0\.0000001 \(money\)"):
        reserve(alice, cheap, prompt=1, completion=0, now=DECEMBER)
