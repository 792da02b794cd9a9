"""The ledger: holds, settling, budgets, and what the database itself refuses."""

import threading
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from django.db import DatabaseError, connection, transaction
from django.utils import timezone

from billing import configuration, ledger, reconciliation, statements
from billing.models import (
    Budget,
    BudgetPeriod,
    Entry,
    Hold,
    LimitChange,
    ModelPrice,
    TokenUsage,
    UsageDaily,
)
from billing.money import from_units
from billing.reservations import Reservation, Settlement, reservation_of
from gateway.http.request_ids import new_request_id
from gateway.metering import CapReached, CountSource, Demand, NoCredit, Operation, Outcome, Usage
from tests.harness.callers import Caller, database_time, new_caller, set_price

NOVEMBER = datetime(2026, 11, 30, 23, 59, tzinfo=UTC)
DECEMBER = datetime(2026, 12, 1, 0, 1, tzinfo=UTC)
LONG_AFTER = datetime(2099, 1, 1, tzinfo=UTC)
# A process of another machine: nobody here knows whether it runs.
ELSEWHERE = "host/boot/1/1-1"


def reserve(
    caller: Caller, price: ModelPrice, *, prompt: int = 100, completion: int = 100, now: Any = None
) -> Hold:
    """Hold what a request of this size may take at most."""
    demand = Demand(
        account_id=caller.account.pk,
        key_id=caller.key.pk,
        operation=Operation.GENERATE,
        model=price.model,
        prompt_bound=prompt,
        prompt_estimate=prompt // 4,
        completion_bound=completion,
    )
    lease = timedelta(seconds=30)
    with database_time(now):
        made = ledger.hold(new_request_id(), demand, price, worker=ELSEWHERE, lease=lease)
    return Hold.objects.get(pk=made.request_id)


def reserved(hold: Hold) -> Reservation:
    """Return what a settlement needs of a hold."""
    hold.database = configuration.database_id()  # type: ignore[attr-defined]
    return reservation_of(hold, hold.price.rates)


def finish(hold: Hold, prompt: int = 10, completion: int = 5, now: Any = None) -> Any:
    usage = Usage(prompt, completion, CountSource.UPSTREAM, started=True)
    with database_time(now):
        return ledger.settle(Settlement(reserved(hold), usage, Outcome.COMPLETE, billed=True))


def books_balance(now: datetime = LONG_AFTER) -> bool:
    """Tell whether nothing differs, read at a moment: by default when no test lies ahead."""
    with database_time(now):
        return not any(found for _check, found in reconciliation.differences())


# --- Holding and settling ------------------------------------------------------------------------


def test_a_hold_sets_the_most_aside_and_settling_takes_what_was_used(
    alice: Caller, priced: ModelPrice
) -> None:
    hold = reserve(alice, priced)
    assert from_units(alice.wallet.held) == hold.amount == Decimal("0.0006")

    row = finish(hold)

    assert row.cost == Decimal("0.00004")
    assert (alice.wallet.held, from_units(alice.wallet.spent)) == (0, row.cost)
    assert books_balance()


def test_settling_twice_bills_once(alice: Caller, priced: ModelPrice) -> None:
    hold = reserve(alice, priced)

    assert finish(hold) is not None and finish(hold, completion=50) is None

    assert TokenUsage.objects.count() == 1 and UsageDaily.objects.get().requests == 1
    assert books_balance()


@pytest.mark.django_db(transaction=True)
def test_many_who_settle_the_same_hold_bill_once(alice: Caller, priced: ModelPrice) -> None:
    hold = reserve(alice, priced)
    won: list[bool] = []

    in_threads(8, lambda: won.append(finish(hold) is not None))

    assert sorted(won) == [False] * 7 + [True] and TokenUsage.objects.count() == 1
    assert books_balance()


@pytest.mark.django_db(transaction=True)
def test_holds_and_settles_of_many_threads_keep_the_books(
    alice: Caller, priced: ModelPrice
) -> None:
    def serve() -> None:
        for _ in range(5):
            finish(reserve(alice, priced))

    in_threads(6, serve)

    assert TokenUsage.objects.count() == UsageDaily.objects.get().requests == 30
    assert books_balance()


def in_threads(count: int, work: Any) -> None:
    """Run work in threads that start together, each with a database connection of its own."""
    start = threading.Barrier(count)
    failures: list[BaseException] = []

    def run() -> None:
        try:
            start.wait(10)
            work()
        except BaseException as error:  # Reported by the main thread.
            failures.append(error)
        finally:
            connection.close()

    threads = [threading.Thread(target=run) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert not failures, failures


@pytest.mark.django_db(transaction=True)
def test_a_hold_inside_another_transaction_is_refused(alice: Caller, priced: ModelPrice) -> None:
    """It must be seen by others at once; so it commits by itself or not at all."""
    with pytest.raises(RuntimeError), transaction.atomic():
        reserve(alice, priced)


def test_the_price_of_the_moment_of_asking_is_what_is_paid(
    alice: Caller, priced: ModelPrice
) -> None:
    hold = reserve(alice, priced)
    set_price("llama3", "100")

    assert finish(hold).cost == Decimal("0.00004")


def test_a_row_lands_on_the_day_it_is_settled(alice: Caller, priced: ModelPrice) -> None:
    hold = reserve(alice, priced, now=NOVEMBER)

    row = finish(hold, now=DECEMBER)

    assert (row.started_at, str(row.day)) == (NOVEMBER, "2026-12-01")


def test_what_is_not_billed_costs_nothing_and_is_still_on_record(
    alice: Caller, priced: ModelPrice
) -> None:
    hold = reserve(alice, priced)
    usage = Usage(10, 3, started=True)

    row = ledger.settle(Settlement(reserved(hold), usage, Outcome.UPSTREAM_BROKE, billed=False))

    assert row is not None and (row.completion_tokens, row.cost) == (3, Decimal(0))
    daily = UsageDaily.objects.get()
    assert (daily.requests, daily.unbilled, daily.completion_tokens) == (1, 1, 0)
    assert books_balance()


# --- Caps ----------------------------------------------------------------------------------------


def cap(
    caller: Caller, limit: int, *, unit: str = "tokens", key: bool = False, now: Any = NOVEMBER
) -> Budget:
    with database_time(now):
        budget = ledger.open_budget(
            caller.account,
            Budget.Unit(unit),
            Budget.Window.MONTH,
            key=caller.key if key else None,
        )
    ledger.set_limit(budget, limit)
    return budget


def test_a_monthly_token_quota_is_reached_and_begins_anew_next_month(
    alice: Caller, priced: ModelPrice
) -> None:
    cap(alice, 250)
    finish(reserve(alice, priced, now=NOVEMBER), 100, 100, NOVEMBER)

    with pytest.raises(CapReached):
        reserve(alice, priced, now=NOVEMBER)
    finish(reserve(alice, priced, now=DECEMBER), 50, 50, DECEMBER)

    quota = BudgetPeriod.objects.get(period="2026-12")
    assert quota.spent == 100
    assert books_balance()


def test_a_hold_over_the_border_of_a_month_counts_in_the_new_one(
    alice: Caller, priced: ModelPrice
) -> None:
    cap(alice, 1000)
    finish(reserve(alice, priced, now=NOVEMBER), 10, 10, NOVEMBER)
    hold = reserve(alice, priced, now=NOVEMBER)

    finish(hold, 30, 30, DECEMBER)

    old, new = BudgetPeriod.objects.order_by("period")
    assert (old.spent, old.held, old.period) == (20, 0, "2026-11")
    assert (new.spent, new.held, new.period) == (60, 0, "2026-12")
    assert books_balance()


def test_a_cap_of_one_key_leaves_other_keys_alone(
    alice: Caller, bob: Caller, priced: ModelPrice
) -> None:
    cap(alice, 150, key=True, now=timezone.now())

    with pytest.raises(CapReached):
        reserve(alice, priced)

    assert reserve(bob, priced).state == "open"


def test_a_refusal_by_one_budget_takes_nothing_from_the_others(
    alice: Caller, priced: ModelPrice
) -> None:
    cap(alice, 1, now=timezone.now())

    with pytest.raises(CapReached):
        reserve(alice, priced)

    assert alice.wallet.held == 0 and not Hold.objects.exists()


def test_a_cap_made_later_counts_what_was_spent_before_and_what_is_under_way(
    alice: Caller, priced: ModelPrice
) -> None:
    now = timezone.now()
    finish(reserve(alice, priced))
    under_way = reserve(alice, priced)

    cap(alice, 10**6, now=now)
    finish(under_way, 20, 20)

    quota = BudgetPeriod.objects.get()
    assert (quota.spent, quota.held) == (15 + 40, 0) and books_balance()


def test_without_a_wallet_nothing_but_caps_limits(priced: ModelPrice) -> None:
    dora = new_caller("Dora", postpaid=True)

    assert reserve(dora, priced, completion=10**6).held_in == []


def test_credit_that_is_all_held_is_gone_for_others(alice: Caller, priced: ModelPrice) -> None:
    reserve(alice, priced, prompt=0, completion=25 * 250_000)

    with pytest.raises(NoCredit):
        reserve(alice, priced, prompt=0, completion=1)


# --- Entries -------------------------------------------------------------------------------------


def test_an_entry_moves_the_wallet_and_says_why(alice: Caller) -> None:
    ledger.post(
        alice.account, Decimal("-0.000000000001"), kind=Entry.Kind.ADJUSTMENT, reason="One unit"
    )

    assert statements.balance(alice.account) == Decimal("24.999999999999")
    assert books_balance()


@pytest.mark.parametrize(
    ("amount", "reason"),
    [("0", "nothing"), ("5", " "), ("9300000", "too much"), ("0.0000000000001", "too fine")],
)
def test_an_entry_that_cannot_be_is_refused(alice: Caller, amount: str, reason: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        ledger.post(alice.account, Decimal(amount), kind=Entry.Kind.GRANT, reason=reason)

    assert Entry.objects.count() == 1 and statements.balance(alice.account) == 25


# --- The database guards itself ------------------------------------------------------------------

CHANGES = ["UPDATE {table} SET id = id", "DELETE FROM {table}"]
GUARDED = ["model_prices", "token_usages", "billing_entry", "billing_limitchange"]


@pytest.mark.parametrize("table", GUARDED)
@pytest.mark.parametrize("change", CHANGES)
def test_append_only_tables_refuse_change_in_raw_sql(
    alice: Caller, priced: ModelPrice, table: str, change: str
) -> None:
    finish(reserve(alice, priced))

    refused = pytest.raises(DatabaseError, match="append-only")
    with refused, transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(change.format(table=table))


@pytest.mark.parametrize(
    ("model", "unique"),
    [
        *((ModelPrice, "id"), (ModelPrice, "effective_from"), (Entry, "id")),
        *((TokenUsage, "id"), (TokenUsage, "request_id")),
        *((LimitChange, "id"), (LimitChange, "budget_id")),
    ],
)
def test_a_row_cannot_be_replaced(
    alice: Caller, priced: ModelPrice, model: Any, unique: str
) -> None:
    """SQLite's REPLACE deletes the row that is in its way, and fires no trigger for that."""
    if connection.vendor != "sqlite":
        pytest.skip("PostgreSQL has no REPLACE")
    finish(reserve(alice, priced))
    table, columns = model._meta.db_table, [each.column for each in model._meta.concrete_fields]
    # With an id of its own, the new row meets the old one by another unique column.
    names = ", ".join(name for name in columns if name != "id" or unique == "id")

    refused = pytest.raises(DatabaseError, match="append-only")
    with refused, transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(f"REPLACE INTO {table} ({names}) SELECT {names} FROM {table}")


@pytest.mark.parametrize("model", [ModelPrice, TokenUsage, Entry, LimitChange])
def test_append_only_rows_refuse_change_through_the_orm(
    alice: Caller, priced: ModelPrice, model: Any
) -> None:
    finish(reserve(alice, priced))

    with pytest.raises(DatabaseError), transaction.atomic():
        model.objects.first().save()


@pytest.mark.parametrize("table", GUARDED)
def test_truncate_is_refused_too(alice: Caller, priced: ModelPrice, table: str) -> None:
    if connection.vendor != "postgresql":
        pytest.skip("SQLite has no TRUNCATE")
    connection.check_constraints()  # With keys still to be checked nothing is truncated anyway.
    refused = pytest.raises(DatabaseError, match=f"{table} is append-only")
    with refused, transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(f"TRUNCATE {table} CASCADE")


def test_a_row_whose_cost_is_not_tokens_times_prices_cannot_be_written(
    alice: Caller, priced: ModelPrice
) -> None:
    row = finish(reserve(alice, priced))
    row.pk, row.request_id, row.cost = None, new_request_id(), Decimal("0.00005")

    with pytest.raises(DatabaseError), transaction.atomic():
        row.save(force_insert=True)
