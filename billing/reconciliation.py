"""Prove the books from their rows: every equality that must hold, and which row breaks it.

All reads happen in one snapshot of the database; so it may run while the gateway serves.
"""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from django.db import connection, transaction

from billing import budget_checks, row_checks
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


@dataclass(frozen=True, slots=True)
class Check:
    """One equality, and how to find what breaks it."""

    name: str
    find: Callable[[], Iterator[str]]


@contextlib.contextmanager
def snapshot() -> Iterator[None]:
    """Let all reads inside see one moment, without keeping writers waiting."""
    if connection.in_atomic_block:
        yield  # Somebody else's transaction is the moment.
        return
    if connection.vendor == "postgresql":
        with transaction.atomic(), connection.cursor() as cursor:
            cursor.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
            yield
        return
    with connection.cursor() as cursor:
        # Not atomic(): that takes SQLite's write lock at its start.
        cursor.execute("BEGIN DEFERRED")
        try:
            yield
        finally:
            cursor.execute("ROLLBACK")


@dataclass(frozen=True, slots=True)
class Scope:
    """What was compared: how many rows and sums, and which usage row was the newest."""

    rows: int
    sums: int
    newest: str

    def __str__(self) -> str:
        return f"checked {self.rows:,} rows, {self.sums:,} sums, newest id {self.newest}"


def prove() -> tuple[list[tuple[Check, list[str]]], Scope]:
    """Return every check with what breaks it, and what was compared, all of one moment."""
    with snapshot():
        return [(check, list(check.find())) for check in CHECKS], _scope()


def differences() -> list[tuple[Check, list[str]]]:
    """Return every check with what breaks it."""
    return prove()[0]


def _scope() -> Scope:
    counted = (TokenUsage, Hold, Entry, ModelPrice, LimitChange)
    # A budget and a month of one: spent, held. A budget's limit, and a line of the roll-up.
    sums = 3 * Budget.objects.count() + 2 * BudgetPeriod.objects.count()
    newest = TokenUsage.objects.order_by("-id").values_list("id", "request_id").first()
    return Scope(
        rows=sum(model._default_manager.count() for model in counted),
        sums=sums + UsageDaily.objects.count(),
        newest=f"{newest[0]} (request {newest[1]})" if newest else "none",
    )


CHECKS = [
    Check("held amounts are the sums of open holds", budget_checks.held_is_open_holds),
    Check("spent amounts are the sums of billed usage", budget_checks.spent_is_usage),
    Check("no month, usage row or lease lies ahead", budget_checks.nothing_lies_ahead),
    Check("wallets are the sums of their entries", budget_checks.wallet_is_entries),
    Check("limits are what they were changed to", budget_checks.limits_are_as_changed),
    Check("the roll-up is the sum of the usage rows", row_checks.rollup_is_usage),
    Check("every cost is tokens times prices", row_checks.cost_follows_from_row),
    Check("every row has its price version's prices", row_checks.row_has_its_versions_prices),
    Check("every ended hold has one usage row", row_checks.ended_holds_have_rows),
    Check("every row is what its hold was for", row_checks.rows_are_of_their_holds),
    Check(
        "what was expired too early is adjusted once", row_checks.adjustments_are_of_expired_rows
    ),
    Check("no row ends before it began", row_checks.rows_end_after_they_began),
    Check("no row is above its hold without a note", row_checks.rows_are_within_their_holds),
    Check("append-only tables are guarded", row_checks.tables_are_guarded),
]
