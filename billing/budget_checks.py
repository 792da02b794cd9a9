"""The checks of budgets in `reconcile`: what they hold, have spent and may spend.

The database computes each sum in one pass over a table, never per budget, since tables are large.
"""

from collections import defaultdict
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

from django.conf import settings
from django.db.models import F, Sum, Window
from django.db.models.functions import Lag

from billing import clock
from billing.models import Budget, BudgetPeriod, Entry, Hold, LimitChange, TokenUsage
from billing.money import ExactSum, from_units, to_units
from billing.months import month_of, months_held


def held_is_open_holds() -> Iterator[str]:
    """The held amount of a budget, in each month, is the sum of its open holds."""
    held: dict[tuple[int, str], int] = defaultdict(int)
    units = dict(Budget.objects.values_list("pk", "unit"))
    for hold in Hold.objects.filter(state=Hold.State.OPEN).iterator():
        for budget_id, month in hold.held_in:
            if budget_id not in units:
                yield f"hold {hold.request_id}: its budget {budget_id} does not exist"
                continue
            money = units[budget_id] == Budget.Unit.MONEY
            held[budget_id, month] += to_units(hold.amount) if money else hold.tokens
    for budget in Budget.objects.select_related("account", "key").iterator():
        expected = held.pop((budget.pk, ""), 0)
        if budget.held != expected:
            yield f"budget {budget.pk} ({budget}): held {budget.held}, open holds {expected}"
    yield from _held_in_months(held)


def _held_in_months(held: dict[tuple[int, str], int]) -> Iterator[str]:
    for row in BudgetPeriod.objects.select_related("budget__account", "budget__key").iterator():
        expected = held.pop((row.budget_id, row.period), 0)
        if row.held != expected:
            yield f"budget {row.budget_id} ({row}): held {row.held}, open holds {expected}"
    for (budget_id, month), amount in held.items():
        yield f"budget {budget_id}: open holds of {month} for {amount}, but no row of that month"


# --- Spent --------------------------------------------------------------------------------------

# By account and key (None: all keys), then by month ("": all time): money and tokens.
Used = dict[tuple[int, int | None], dict[str, dict[str, int]]]


def spent_is_usage() -> Iterator[str]:
    """The spent amount of a budget is the sum of the billed usage rows of its window."""
    used = _usage()
    counted: dict[int, dict[str, int]] = defaultdict(dict)
    for row in BudgetPeriod.objects.iterator():
        counted[row.budget_id][row.period] = row.spent
    for budget in Budget.objects.select_related("account", "key").iterator():
        months = used.get((budget.account_id, budget.key_id), {})
        if budget.window == Budget.Window.MONTH:
            yield from _months_spent(budget, months, counted[budget.pk])
            continue
        expected = months.get("", {}).get(budget.unit, 0)
        if budget.spent != expected:
            yield f"budget {budget.pk} ({budget}): spent {budget.spent}, usage {expected}"


def _usage() -> Used:
    used: Used = defaultdict(lambda: defaultdict(lambda: {"money": 0, "tokens": 0}))
    sums = {"money": ExactSum("cost"), "tokens": Sum(F("prompt_tokens") + F("completion_tokens"))}
    days = TokenUsage.objects.filter(billed=True).order_by().values("account_id", "key_id", "day")
    summed: Any = days.annotate(**sums)
    for row in summed.iterator():
        for key_id in (None, row["key_id"]):
            for month in ("", month_of(row["day"])):
                totals = used[row["account_id"], key_id][month]
                totals["money"] += to_units(row["money"])
                totals["tokens"] += int(row["tokens"])
    return used


def _months_spent(
    budget: Budget, months: dict[str, dict[str, int]], counted: dict[str, int]
) -> Iterator[str]:
    """Compare every month since the budget was created. A month without a row had no usage."""
    since = min(counted, default="")
    for month in sorted({month for month in months if month and month >= since} | counted.keys()):
        spent, expected = counted.get(month, 0), months.get(month, {}).get(budget.unit, 0)
        if spent != expected:
            yield f"budget {budget.pk} ({budget}) in {month}: spent {spent}, usage {expected}"
    if budget.spent or budget.held:
        yield f"budget {budget.pk} ({budget}): a monthly budget with amounts outside its months"


# --- Limits -------------------------------------------------------------------------------------


def wallet_is_entries() -> Iterator[str]:
    """A wallet's limit is the sum of its entries, and every account with entries has a wallet."""
    entries: dict[Any, Any] = dict(
        Entry.objects.order_by().values_list("account_id").annotate(sum=ExactSum("amount"))
    )
    for wallet in Budget.objects.wallets().select_related("account").iterator():
        total = to_units(entries.pop(wallet.account_id, 0))
        if wallet.limit != total:
            amounts = f"limit {from_units(wallet.limit):f}, entries {from_units(total):f}"
            yield f"wallet of {wallet.account}: {amounts}"
    for account_id, total in entries.items():
        yield f"account {account_id}: entries of {total:f}, but no wallet"


def limits_are_as_changed() -> Iterator[str]:
    """A cap's limit is that of its last change, changes follow one another, and every budget with
    a change exists."""
    latest: dict[int, int] = {}
    before = Window(Lag("new"), partition_by=F("budget_id"), order_by=F("id").asc())
    for change in LimitChange.objects.order_by("id").annotate(before=before).iterator():
        if change.old != change.before:
            yield f"limit change {change.pk}: from {change.old}, but the limit was {change.before}"
        latest[change.budget_id] = change.new
    for budget in Budget.objects.select_related("account", "key").iterator():
        expected = latest.pop(budget.pk, None)
        if expected is None:
            yield f"budget {budget.pk} ({budget}): its creation is not recorded"
        elif not budget.is_wallet and budget.limit != expected:
            yield f"budget {budget.pk} ({budget}): limit {budget.limit}, last change {expected}"
    for budget_id in latest:
        yield f"budget {budget_id}: has limit changes, but does not exist"


# --- Time ---------------------------------------------------------------------------------------


def nothing_in_the_future() -> Iterator[str]:
    """No month, usage row or lease is later than the database's clock allows.

    If one is, the clock was wrong for a while, and caps counted in a month that had not started.
    """
    now = clock.read()
    current, last_held = month_of(now), months_held(now)[-1]
    future = BudgetPeriod.objects.select_related("budget").filter(period__gt=current)
    for row in future.exclude(period__lte=last_held, spent=0).iterator():
        yield f"budget {row.budget_id} ({row}): this month has not started"
    for usage in TokenUsage.objects.filter(day__gt=now.date()).iterator():
        yield f"usage row {usage.request_id}: dated {usage.day}, which is in the future"
    longest = now + timedelta(seconds=settings.HOLD_LEASE_SECONDS, hours=1)
    leases = Hold.objects.filter(state=Hold.State.OPEN, lease_until__gt=longest)
    for hold in leases.iterator():
        yield f"hold {hold.request_id}: its lease ends at {hold.lease_until:%F %R}, too late"
