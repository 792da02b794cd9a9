"""Prove billing from its rows: every equality that must hold, and the rows that violate it.

All reads happen in one snapshot of the database, so it may run while the gateway serves requests.
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
    """An equality that must hold, and a function that finds its violations."""

    name: str
    violations: Callable[[], Iterator[str]]


@contextlib.contextmanager
def snapshot() -> Iterator[None]:
    """Let all reads inside the block see one snapshot, without blocking writers."""
    if connection.in_atomic_block:
        yield  # The caller's transaction is the snapshot.
        return
    if connection.vendor == "postgresql":
        with transaction.atomic(), connection.cursor() as cursor:
            cursor.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
            yield
        return
    with connection.cursor() as cursor:
        # Not atomic(), which takes SQLite's write lock at once.
        cursor.execute("BEGIN DEFERRED")
        try:
            yield
        finally:
            cursor.execute("ROLLBACK")


@dataclass(frozen=True, slots=True)
class Scope:
    """What was compared: how many rows and sums, and the newest usage row."""

    rows: int
    sums: int
    newest: str

    def __str__(self) -> str:
        return f"checked {self.rows:,} rows, {self.sums:,} sums, newest id {self.newest}"


def prove() -> tuple[list[tuple[Check, list[str]]], Scope]:
    """Return every check with its violations, and what was compared, all from one snapshot."""
    with snapshot():
        return [(check, list(check.violations())) for check in CHECKS], _scope()


def differences() -> list[tuple[Check, list[str]]]:
    """Return every check with its violations."""
    return prove()[0]


def _scope() -> Scope:
    counted = (TokenUsage, Hold, Entry, ModelPrice, LimitChange)
    # A budget has three sums: limit, spent, held. A month of a budget has the last two.
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
    Check("no month, usage row or lease is in the future", budget_checks.nothing_in_the_future),
    Check("wallets are the sums of their entries", budget_checks.wallet_is_entries),
    Check("limits are those of their last changes", budget_checks.limits_are_as_changed),
    Check("the roll-up is the sum of the usage rows", row_checks.rollup_is_usage),
    Check("every cost is tokens times prices", row_checks.cost_follows_from_row),
    Check("every row has its price version's prices", row_checks.row_has_its_versions_prices),
    Check("every ended hold has one usage row", row_checks.ended_holds_have_rows),
    Check("every row matches its hold", row_checks.rows_match_their_holds),
    Check("holds that expired early are adjusted once", row_checks.adjustments_are_of_expired_rows),
    Check("no row ends before it starts", row_checks.rows_end_after_they_start),
    Check(
        "no row exceeds its hold unless the gateway counted", row_checks.rows_are_within_their_holds
    ),
    Check("append-only tables are guarded", row_checks.tables_are_guarded),
]
