"""A request that goes on after its hold expired is billed in full, exactly once."""

from datetime import timedelta
from decimal import Decimal

import pytest

from billing import journal, leases, ledger, recovery
from billing.meter import LedgerMeter
from billing.models import Budget, Hold, ModelPrice, TokenUsage, UsageDaily
from billing.money import from_units
from billing.reservations import Settlement
from gateway.http.request_ids import new_request_id
from gateway.metering import CountSource, Demand, Operation, Outcome, Usage
from tests.billing.test_crash_at_any_statement import machine_running_for
from tests.billing.test_ledger import (
    DECEMBER,
    NOVEMBER,
    books_balance,
    finish,
    in_threads,
    reserve,
    reserved,
)
from tests.harness.callers import Caller, database_time

pytestmark = pytest.mark.usefixtures("priced", "journal_directory")
TWO_HOURS = timedelta(hours=2)


def expired(caller: Caller, produced: int) -> LedgerMeter:
    """Return the meter of a request that is served, though its hold was settled as expired."""
    meter = LedgerMeter(new_request_id())
    ids = (caller.account.pk, caller.key.pk)
    meter.open(Demand(*ids, Operation.CHAT, "llama3:latest", 100, 25, 100))
    ledger.renew({meter.request_id: produced}, timedelta(seconds=30))
    with machine_running_for(TWO_HOURS):
        assert recovery.settle_abandoned() == 1
    return meter


@pytest.mark.parametrize("produced", [0, 3, 90])
def test_the_receipt_and_both_rows_add_up_to_the_delivered_usage(
    alice: Caller, produced: int, caplog: pytest.LogCaptureFixture
) -> None:
    """The first row has too little, or too much if the prompt was shorter than estimated."""
    meter = expired(alice, produced)
    early = TokenUsage.objects.get()

    receipt = meter.close(Usage(10, 50, CountSource.UPSTREAM, started=True), Outcome.COMPLETE)

    assert receipt and receipt.cost == Decimal("0.00022")
    assert (receipt.usage.prompt_tokens, receipt.usage.completion_tokens) == (10, 50)
    later = TokenUsage.objects.get(adjusts=early.request_id)
    assert early.cost + later.cost == receipt.cost == from_units(alice.wallet.spent)
    assert (later.outcome, later.billed) == ("complete", True)
    assert Hold.objects.get().state == "adjusted" and books_balance()
    [error] = [record for record in caplog.records if record.levelname == "ERROR"]
    assert f"{early.cost} was billed, it cost {receipt.cost}" in error.getMessage()


def test_the_roll_up_counts_the_request_once_and_all_of_its_tokens(alice: Caller) -> None:
    expired(alice, 3).close(Usage(10, 50, started=True), Outcome.COMPLETE)

    day = UsageDaily.objects.get()
    assert (day.requests, day.unbilled, day.prompt_tokens, day.completion_tokens) == (1, 0, 10, 50)


def test_an_expired_request_that_turns_out_to_be_free_is_refunded(alice: Caller) -> None:
    meter = expired(alice, 3)

    receipt = meter.close(Usage(), Outcome.GATEWAY_FAILED)

    assert receipt and receipt.cost == 0 == alice.wallet.spent and books_balance()


@pytest.mark.django_db(transaction=True)
def test_concurrent_late_settlements_bill_the_difference_once(
    alice: Caller, priced: ModelPrice
) -> None:
    hold = reserve(alice, priced)
    with database_time(hold.lease_until):
        assert recovery.settle_abandoned() == 1
    settled: list[bool] = []

    in_threads(8, lambda: settled.append(finish(hold) is not None))

    assert sorted(settled) == [False] * 7 + [True]
    assert sum(row.cost for row in TokenUsage.objects.all()) == Decimal("0.00004")
    assert books_balance()


def test_a_journal_that_is_replayed_after_the_lease_expired_bills_the_difference(
    alice: Caller, priced: ModelPrice
) -> None:
    """The request ended while the database was away. Its lease expired before the replay."""
    hold = reserve(alice, priced)
    usage = Usage(10, 5, CountSource.UPSTREAM, started=True)
    with database_time(hold.lease_until):
        assert recovery.settle_abandoned() == 1
    journal.write(Settlement(reserved(hold), usage, Outcome.COMPLETE, billed=True))

    for _ in range(2):
        leases.LeaseRenewer().tick()

    assert sum(row.cost for row in TokenUsage.objects.all()) == Decimal("0.00004")
    assert TokenUsage.objects.count() == 2 and books_balance()


def test_the_difference_counts_in_the_month_of_its_own_row(
    alice: Caller, priced: ModelPrice
) -> None:
    with database_time(NOVEMBER):
        cap = ledger.open_budget(alice.account, Budget.Unit.TOKENS, Budget.Window.MONTH)
        ledger.set_limit(cap, 1000)
    hold = reserve(alice, priced, now=NOVEMBER)
    Hold.objects.update(progress=3)
    with database_time(NOVEMBER + timedelta(seconds=31)):
        assert recovery.settle_abandoned() == 1

    finish(hold, 40, 50, now=DECEMBER)

    spent = dict(cap.periods.values_list("period", "spent"))
    assert spent == {"2026-11": 28, "2026-12": 62} and books_balance()


def test_a_clock_that_is_set_back_makes_no_negative_duration(
    alice: Caller, priced: ModelPrice
) -> None:
    row = finish(reserve(alice, priced, now=DECEMBER), now=NOVEMBER)

    assert row.started_at == row.settled_at == NOVEMBER and books_balance()
