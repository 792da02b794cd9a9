"""A monthly cap, where one month ends and the next begins: requests do not end in order."""

from datetime import UTC, datetime

import pytest

from billing import ledger
from billing.models import Budget, ModelPrice
from gateway.metering import CapReached
from tests.billing.test_ledger import DECEMBER, NOVEMBER, books_balance, finish, reserve
from tests.conftest import Caller, set_price


@pytest.fixture
def cap(alice: Caller) -> Budget:
    """A cap of 1,000 tokens a month."""
    opened = ledger.open_budget(
        alice.account, Budget.Unit.TOKENS, Budget.Window.MONTH, now=NOVEMBER
    )
    ledger.set_limit(opened, 1000)
    return opened


def state(cap: Budget) -> tuple[str, int]:
    cap.refresh_from_db()
    return cap.period, cap.spent


def test_a_late_end_does_not_open_the_old_month_again(
    alice: Caller, priced: ModelPrice, cap: Budget
) -> None:
    holds = [reserve(alice, priced, now=NOVEMBER) for _ in range(3)]

    for hold, now in zip(holds, [NOVEMBER, DECEMBER, NOVEMBER], strict=True):
        finish(hold, now=now)

    assert state(cap) == ("2026-12", 15) and books_balance()


def test_a_late_hold_counts_against_the_month_that_has_begun(
    alice: Caller, priced: ModelPrice, cap: Budget
) -> None:
    finish(reserve(alice, priced, now=DECEMBER), prompt=900, completion=0, now=DECEMBER)

    with pytest.raises(CapReached, match=r"up to 200 \(tokens\)"):
        reserve(alice, priced, now=NOVEMBER)

    assert state(cap) == ("2026-12", 900) and books_balance()


def test_a_clock_that_was_far_ahead_does_not_stop_a_cap_for_ever(
    alice: Caller, priced: ModelPrice, cap: Budget
) -> None:
    finish(reserve(alice, priced), now=datetime(2031, 1, 1, tzinfo=UTC))

    finish(reserve(alice, priced, now=DECEMBER), now=DECEMBER)

    assert state(cap) == ("2026-12", 15) and books_balance()


@pytest.mark.parametrize("day", [1, 28, 31])
def test_december_is_followed_by_january(day: int) -> None:
    assert ledger.period_after(datetime(2026, 12, day, tzinfo=UTC)) == "2027-01"
    assert ledger.period_after(datetime(2027, 1, day, tzinfo=UTC)) == "2027-02"


def test_a_refusal_names_small_money_in_plain_digits(alice: Caller) -> None:
    cheap = set_price("llama3", "0.0001")
    ledger.open_budget(alice.account, Budget.Unit.MONEY, Budget.Window.MONTH, now=DECEMBER)

    with pytest.raises(CapReached, match=r"up to 0\.0000001 \(money\)"):
        reserve(alice, cheap, prompt=1, completion=0, now=DECEMBER)
