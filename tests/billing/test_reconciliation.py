"""`reconcile` finds changes that were made directly in the database, and names the rows.

The database rejects most of these changes, so the tests remove its triggers and constraints first.
"""

import contextlib
import io
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from django.core.management import call_command
from django.db import connection

from accounts import keys
from billing import append_only, ledger, reconciliation, row_checks, statements
from billing.models import Budget, ModelPrice, TokenUsage
from billing.money import to_units
from tests.billing.test_ledger import books_balance, finish, reserve
from tests.harness.callers import Caller, database_time

NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)


@pytest.fixture
def books(alice: Caller, priced: ModelPrice) -> None:
    """Every kind of budget, a request that is billed, and one that is being served."""
    for unit in (Budget.Unit.MONEY, Budget.Unit.TOKENS):
        for key in (None, alice.key):
            month = Budget.Window.MONTH
            with database_time(NOW):
                cap = ledger.open_budget(alice.account, unit, month, key=key)
            ledger.set_limit(cap, 10**9)
    finish(reserve(alice, priced, now=NOW), now=NOW)
    reserve(alice, priced, now=NOW)
    assert books_balance()


@pytest.fixture
def unguarded(books: None) -> Iterator[None]:
    """Remove the triggers and constraints until the test's transaction ends."""
    connection.check_constraints()  # PostgreSQL alters no table with deferred checks.
    append_only.unprotect(connection.schema_editor(atomic=False))  # In the test's transaction.
    with without_constraints():
        yield


@contextlib.contextmanager
def without_constraints() -> Iterator[None]:
    if connection.vendor == "sqlite":
        sql("PRAGMA ignore_check_constraints = ON")
        yield
        sql("PRAGMA ignore_check_constraints = OFF")
        return
    for name in ("cost_follows_from_row", "usage_not_negative"):
        sql(f"ALTER TABLE token_usages DROP CONSTRAINT {name}")
    yield


def sql(statement: str) -> None:
    with connection.cursor() as cursor:
        cursor.execute(statement)


def violations() -> dict[str, list[str]]:
    """Return the violations of each check that fails."""
    with database_time(NOW):
        return {check.name: rows for check, rows in reconciliation.differences() if rows}


BUDGET = "UPDATE billing_budget SET {column} = {column} + 1 WHERE {rest}"
MONTH = (
    "UPDATE billing_budgetperiod SET {column} = {column} + 1"
    " WHERE budget_id IN (SELECT id FROM billing_budget WHERE {rest})"
)
WALLET, ANY_CAP = "\"window\" = 'total'", "\"window\" = 'month'"
CAPS = [
    f"unit = '{unit}' AND key_id {condition} AND {ANY_CAP}"
    for unit in ("money", "tokens")
    for condition in ("IS NULL", "IS NOT NULL")
]
SUMMED = ("requests", "unbilled", "prompt_tokens", "completion_tokens", "cost")

TAMPERINGS = [
    *[
        (check, table.format(column=column, rest=rest))
        for check, column in (("held amounts", "held"), ("spent amounts", "spent"))
        for table, rest in [(BUDGET, WALLET), (BUDGET, ANY_CAP), *((MONTH, cap) for cap in CAPS)]
    ],
    ("held amounts", "DELETE FROM billing_budgetperiod"),
    ("spent amounts", "UPDATE billing_budgetperiod SET period = '2026-10'"),
    ("no month", "UPDATE billing_budgetperiod SET period = '2026-12'"),
    ("no month", "UPDATE token_usages SET day = '2026-11-24'"),
    ("wallets", 'UPDATE billing_budget SET "limit" = "limit" + 1 WHERE "window" = \'total\''),
    ("wallets", "DELETE FROM billing_entry"),
    ("wallets", "UPDATE billing_entry SET amount = amount + 1"),
    *[("the roll-up", f"UPDATE billing_usagedaily SET {name} = {name} + 1") for name in SUMMED],
    ("the roll-up", "UPDATE billing_usagedaily SET model = 'other:latest'"),
    ("the roll-up", "DELETE FROM billing_usagedaily"),
    ("every cost", "UPDATE token_usages SET cost = cost + 1"),
    ("every cost", "UPDATE token_usages SET completion_tokens = completion_tokens + 1"),
    ("every cost", "UPDATE token_usages SET billed = FALSE"),
    (
        "every row has its price",
        "UPDATE token_usages SET prompt_price = prompt_price + 1, cost = cost + prompt_tokens",
    ),
    ("every row has its price", "UPDATE token_usages SET model = 'other:latest'"),
    ("every ended hold", "UPDATE billing_hold SET state = 'open'"),
    ("every ended hold", "UPDATE billing_hold SET state = 'released' WHERE state = 'open'"),
    ("every ended hold", "DELETE FROM token_usages"),
    ("holds that expired", "UPDATE billing_hold SET state = 'adjusted' WHERE state = 'settled'"),
    ("holds that expired", f"UPDATE token_usages SET adjusts = '{UUID(int=1)}'"),
    ("no row ends", "UPDATE token_usages SET started_at = '2026-11-24'"),
    ("every row matches", "UPDATE token_usages SET operation = 'chat'"),
    ("every row matches", "UPDATE billing_hold SET model = 'other:latest'"),
    ("every row matches", "UPDATE token_usages SET started_at = '2026-01-01 00:00:00+00:00'"),
    ("no month, usage row or lease", "UPDATE billing_hold SET lease_until = '2125-01-01 00:00:00'"),
    ("limits are", 'UPDATE billing_budget SET "limit" = "limit" * 1000'),
    ("limits are", "UPDATE billing_limitchange SET new = new + 1"),
    ("limits are", "UPDATE billing_limitchange SET old = old + 1"),
    ("limits are", "DELETE FROM billing_limitchange"),
    ("no row exceeds", "UPDATE token_usages SET prompt_tokens = 100000"),
    ("append-only tables", "SELECT 1"),  # The triggers are removed already.
]


@pytest.mark.usefixtures("unguarded")
@pytest.mark.parametrize(("check", "statement"), TAMPERINGS)
def test_a_change_of_any_column_is_found(check: str, statement: str) -> None:
    sql(statement)

    assert any(name.startswith(check) for name in violations())


def test_every_check_has_a_change_that_it_finds() -> None:
    covered = {check for check, _statement in TAMPERINGS}

    assert not [
        check.name
        for check in reconciliation.CHECKS
        if not any(check.name.startswith(name) for name in covered)
    ]


def test_the_last_line_states_what_was_compared(books: None, alice: Caller) -> None:
    row = TokenUsage.objects.get()
    out = io.StringIO()

    call_command("reconcile", stdout=out)

    last_line = out.getvalue().splitlines()[-1]
    # Rows: 1 of usage, 2 holds, 1 entry, 3 prices, 9 changes.
    # Sums: 3 of each of 5 budgets, 2 of each of 4 months, 1 of a roll-up line.
    assert last_line == f"checked 16 rows, 24 sums, newest id {row.pk} (request {row.request_id})"


@pytest.mark.usefixtures("unguarded")
def test_a_difference_names_its_row(alice: Caller) -> None:
    row = TokenUsage.objects.get()
    sql("UPDATE token_usages SET cost = cost + 1")

    assert str(row.request_id) in violations()["every cost is tokens times prices"][0]


def test_a_missing_and_a_surplus_roll_up_line_are_two_differences(books: None) -> None:
    sql("UPDATE billing_usagedaily SET model = 'other:latest'")

    assert len(list(row_checks.rollup_is_usage())) == 2


# --- Sums over time -------------------------------------------------------------------------------


def test_sums_are_exact_beyond_the_precision_of_a_float(alice: Caller, priced: ModelPrice) -> None:
    """2 ** 53 smallest units are 9007.20; the sums here are larger."""
    cap = ledger.open_budget(alice.account, Budget.Unit.TOKENS, Budget.Window.TOTAL)
    ledger.set_limit(cap, 10**15)
    Budget.objects.filter(pk=alice.wallet.pk).update(limit=to_units("9000000"))
    sizes = [10**9 * 3 + 1, 10**9 * 2 + 3, 7]
    for size in sizes:
        finish(reserve(alice, priced, prompt=0, completion=size), 0, size)

    cap.refresh_from_db()
    assert cap.spent == sum(sizes)
    assert alice.wallet.spent == sum(sizes) * priced.rates.completion > 2**53


def test_renaming_a_key_or_account_changes_no_usage_row(alice: Caller, books: None) -> None:
    before = list(TokenUsage.objects.values())

    keys.rename(alice.key.pk, "another")
    alice.account.name = "Another Ltd"
    alice.account.save()

    assert list(TokenUsage.objects.values()) == before


@pytest.mark.parametrize("days", range(5))
def test_the_totals_of_two_date_ranges_add_up_to_the_total_of_both(
    alice: Caller, priced: ModelPrice, days: int
) -> None:
    for day in range(5):
        finish(reserve(alice, priced), 10 * day, day, now=NOW + timedelta(days=day))
    first, last = NOW.date(), NOW.date() + timedelta(days=4)
    cut = first + timedelta(days=days)

    def total(*days: Any) -> statements.Totals:
        return statements.total(statements.days_of(alice.account, *days))

    parts, whole = (total(first, cut), total(cut + timedelta(days=1), last)), total(first, last)
    for name in (*SUMMED, "total_tokens"):
        assert sum(getattr(part, name) for part in parts) == getattr(whole, name)


def test_a_request_that_exceeds_its_hold_is_charged_in_full(
    alice: Caller, priced: ModelPrice
) -> None:
    """A model that reads more than was foreseen: the wallet passes zero by that, and no more."""
    finish(reserve(alice, priced, prompt=1, completion=1), 4000, 2)

    assert alice.wallet.spent == to_units("0.008008") and books_balance()
