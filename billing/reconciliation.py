"""Prove the books from their rows: every equality that must hold, and which row breaks it.

All reads happen in one snapshot of the database; so it may run while the gateway serves.
"""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from django.db import connection, transaction
from django.db.models import Case, Count, Exists, F, OuterRef, Q, QuerySet, Sum, Value, When
from django.db.models.functions import Coalesce

from billing import clock
from billing.models import Budget, BudgetPeriod, Entry, Hold, TokenUsage, UsageDaily
from billing.money import from_pico, to_pico
from billing.months import month_of, months_held
from gateway.metering import Outcome


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


def differences() -> list[tuple[Check, list[str]]]:
    """Return every check with what breaks it."""
    with snapshot():
        return [(check, list(check.find())) for check in CHECKS]


def held_is_open_holds() -> Iterator[str]:
    """A budget's held amount, in each month, is the sum of the open holds it gave to."""
    held: dict[tuple[int, str], int] = {}
    units = dict(Budget.objects.values_list("pk", "unit"))
    for hold in Hold.objects.filter(state=Hold.State.OPEN).iterator():
        for budget_id, month in hold.held_in:
            if budget_id not in units:
                yield f"hold {hold.request_id}: budget {budget_id} gave to it and is gone"
                continue
            money = units[budget_id] == Budget.Unit.MONEY
            amount = to_pico(hold.amount) if money else hold.tokens
            held[budget_id, month] = held.get((budget_id, month), 0) + amount
    for budget in Budget.objects.all():
        expected = held.pop((budget.pk, ""), 0)
        if budget.held != expected:
            yield f"budget {budget.pk} ({budget}): held {budget.held}, open holds {expected}"
    for row in BudgetPeriod.objects.select_related("budget").iterator():
        expected = held.pop((row.budget_id, row.period), 0)
        if row.held != expected:
            yield f"budget {row.budget_id} ({row}): held {row.held}, open holds {expected}"
    for (budget_id, month), amount in held.items():
        yield f"budget {budget_id}: open holds of {month} for {amount}, but no row of that month"


def spent_is_usage() -> Iterator[str]:
    """What a budget counts as spent is the sum of the billed usage rows of its window."""
    for budget in Budget.objects.all():
        rows = TokenUsage.objects.filter(account=budget.account_id, billed=True)
        if budget.key_id:
            rows = rows.filter(key=budget.key_id)
        if budget.window == Budget.Window.MONTH:
            yield from _months_spent(budget, rows)
        elif budget.spent != (expected := _sum_in(rows, budget.unit)):
            yield f"budget {budget.pk} ({budget}): spent {budget.spent}, usage {expected}"


def _months_spent(budget: Budget, rows: QuerySet[TokenUsage]) -> Iterator[str]:
    """Compare every month since the budget was opened; one without a row had no usage in it."""
    counted = dict(budget.periods.values_list("period", "spent"))
    days = rows.order_by().values_list("day", flat=True).distinct()
    used = {month for month in map(month_of, days) if month >= min(counted, default="")}
    for month in sorted(used | counted.keys()):
        in_month = rows.filter(day__year=month[:4], day__month=month[5:])
        expected, spent = _sum_in(in_month, budget.unit), counted.get(month, 0)
        if spent != expected:
            yield f"budget {budget.pk} ({budget}) in {month}: spent {spent}, usage {expected}"
    if budget.spent or budget.held:
        yield f"budget {budget.pk} ({budget}): counts outside of its months"


def nothing_lies_ahead() -> Iterator[str]:
    """No month has begun and no usage row is dated that the database's clock has not reached: while
    it was wrong, caps counted in a month that nobody is in."""
    now = clock.read()
    this, later = month_of(now), months_held(now)[-1]
    ahead = BudgetPeriod.objects.select_related("budget").filter(period__gt=this)
    for row in ahead.exclude(period__lte=later, spent=0).iterator():
        yield f"budget {row.budget_id} ({row}): this month has not begun"
    for used in TokenUsage.objects.filter(day__gt=now.date()).iterator():
        yield f"usage row {used.request_id}: dated {used.day}, which is ahead"


def _sum_in(rows: Any, unit: str) -> int:
    sums = rows.aggregate(
        cost=Sum("cost"), prompt=Sum("prompt_tokens"), completion=Sum("completion_tokens")
    )
    if unit == Budget.Unit.MONEY:
        return to_pico(sums["cost"] or 0)
    return int((sums["prompt"] or 0) + (sums["completion"] or 0))


def wallet_is_entries() -> Iterator[str]:
    """A wallet's limit is the sum of its entries."""
    wallets = Budget.objects.filter(
        key=None, unit=Budget.Unit.MONEY, window=Budget.Window.TOTAL
    ).select_related("account")
    for wallet in wallets:
        total = Entry.objects.filter(account=wallet.account).aggregate(sum=Sum("amount"))["sum"]
        if wallet.limit != to_pico(total or 0):
            yield f"wallet of {wallet.account}: limit {from_pico(wallet.limit)}, entries {total}"


ROLLED = ("requests", "unbilled", "prompt_tokens", "completion_tokens", "cost")
PLACE = ("account_id", "day", "key_id", "model", "price_id")


def rollup_is_usage() -> Iterator[str]:
    """The roll-up is the usage rows grouped, in every column, in both directions."""
    billed = Q(billed=True)
    grouped = (
        TokenUsage.objects.order_by()
        .values(*PLACE)
        .annotate(
            requests=Count("pk", filter=Q(adjusts=None)),
            unbilled=Sum(Case(When(billed=False, then=Value(1)), default=Value(0))),
            sum_prompt=Coalesce(Sum("prompt_tokens", filter=billed), Value(0)),
            sum_completion=Coalesce(Sum("completion_tokens", filter=billed), Value(0)),
            sum_cost=Sum("cost"),
        )
    )
    expected = {_place(row): _sums(row) for row in grouped.iterator()}
    rolled = UsageDaily.objects.order_by().values(*PLACE, *ROLLED)
    found = {_place(row): tuple(row[name] for name in ROLLED) for row in rolled.iterator()}
    for place in expected.keys() | found.keys():
        if expected.get(place) != found.get(place):
            yield f"roll-up {place}: has {found.get(place)}, usage rows say {expected.get(place)}"


def _place(row: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(row[name] for name in PLACE)


def _sums(row: dict[str, Any]) -> tuple[Any, ...]:
    sums = (row["sum_prompt"], row["sum_completion"], row["sum_cost"])
    return (row["requests"], row["unbilled"], *sums)


def cost_follows_from_row() -> Iterator[str]:
    """A usage row's cost is its tokens times its prices, or nothing if it is not billed."""
    formula = (
        F("prompt_tokens") * F("prompt_price")
        + F("completion_tokens") * F("completion_price")
        + F("request_price")
    )
    wrong = Q(billed=False) & ~Q(cost=0) | Q(billed=True) & ~Q(cost=formula)
    for row in TokenUsage.objects.filter(wrong).iterator():
        yield f"usage row {row.request_id}: cost {row.cost} is not tokens times prices"


def row_has_its_versions_prices() -> Iterator[str]:
    """A usage row's prices are those of the price version it names."""
    same = Q(
        prompt_price=F("price__prompt_price"),
        completion_price=F("price__completion_price"),
        model=F("price__model"),
    )
    # An adjustment has the difference of two.
    same &= Q(request_price=F("price__request_price")) | Q(adjusts__isnull=False)
    for row in TokenUsage.objects.exclude(same).iterator():
        yield f"usage row {row.request_id}: prices differ from price version {row.price_id}"


def ended_holds_have_rows() -> Iterator[str]:
    """Every hold that has ended has one usage row, and every usage row such a hold. Adjustments
    stand beside these."""
    ended = Hold.objects.exclude(state=Hold.State.OPEN)
    rows = TokenUsage.objects.order_by().values("request_id")
    for hold in ended.exclude(request_id__in=rows).iterator():
        yield f"hold {hold.request_id}: {hold.state}, but without a usage row"
    firsts = TokenUsage.objects.filter(adjusts=None)
    for row in firsts.exclude(request_id__in=ended.values("request_id")).iterator():
        yield f"usage row {row.request_id}: without a hold that has ended"


def adjustments_are_of_expired_rows() -> Iterator[str]:
    """What was settled as expired though its answer ended later has one more row, and nothing else
    has."""
    adjusted = Hold.objects.filter(state=Hold.State.ADJUSTED)
    row = TokenUsage.objects.filter(adjusts=OuterRef("pk"))
    for hold in adjusted.exclude(Exists(row)).iterator():
        yield f"hold {hold.request_id}: its answer ended later, but no row has the difference"
    first = TokenUsage.objects.filter(
        request_id=OuterRef("adjusts"), adjusts=None, outcome=Outcome.EXPIRED
    )
    its_hold = adjusted.filter(pk=OuterRef("adjusts"))
    more = TokenUsage.objects.filter(adjusts__isnull=False)
    for found in more.exclude(Exists(first), Exists(its_hold)).iterator():
        yield f"usage row {found.request_id}: adjusts {found.adjusts}, which did not end later"


def rows_end_after_they_began() -> Iterator[str]:
    """No usage row has a negative duration."""
    for row in TokenUsage.objects.filter(settled_at__lt=F("started_at")).iterator():
        yield f"usage row {row.request_id}: settled {row.settled_at}, began {row.started_at}"


def rows_are_of_their_holds() -> Iterator[str]:
    """A usage row names the account, key, price, model and operation of its hold."""
    names = ("account", "key", "price", "model", "operation")
    its_hold = Hold.objects.filter(
        pk=Coalesce(OuterRef("adjusts"), OuterRef("request_id")),
        **{name: OuterRef(name) for name in names},
    )
    for row in TokenUsage.objects.exclude(Exists(its_hold)).iterator():
        yield f"usage row {row.request_id}: differs from its hold"


CHECKS = [
    Check("held amounts are the sums of open holds", held_is_open_holds),
    Check("spent amounts are the sums of billed usage", spent_is_usage),
    Check("no month and no usage row lies ahead", nothing_lies_ahead),
    Check("wallets are the sums of their entries", wallet_is_entries),
    Check("the roll-up is the sum of the usage rows", rollup_is_usage),
    Check("every cost is tokens times prices", cost_follows_from_row),
    Check("every row has its price version's prices", row_has_its_versions_prices),
    Check("every ended hold has one usage row", ended_holds_have_rows),
    Check("every row is what its hold was for", rows_are_of_their_holds),
    Check(
        "what was expired too early is adjusted once",
        adjustments_are_of_expired_rows,
    ),
    Check("no row ends before it began", rows_end_after_they_began),
]
