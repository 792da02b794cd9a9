"""Sums of past usage, for customers and operators, from the roll-up and never from usage rows."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import date, timedelta
from decimal import Decimal
from typing import Any

from django.db.models import F, OuterRef, QuerySet, Subquery, Sum
from django.db.models.functions import Coalesce

from accounts.models import Account, ApiKey
from billing.models import Budget, BudgetPeriod, UsageDaily
from billing.money import ExactSum, from_units


@dataclass(frozen=True, slots=True)
class Totals:
    """Sums over some days. Tokens count billed requests; `requests` counts all of them."""

    requests: int = 0
    unbilled: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: Decimal = Decimal(0)

    @property
    def total_tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a statement: a day, a model or a key, and its sums."""

    label: date | str | int
    totals: Totals = field(default_factory=Totals)


SUMS = {
    **{name: Sum(name) for name in ("requests", "unbilled", "prompt_tokens", "completion_tokens")},
    "cost": ExactSum("cost"),
}


def days_of(account: Account, first: date, last: date) -> QuerySet[UsageDaily]:
    """Return an account's roll-up rows between two days, inclusive."""
    return UsageDaily.objects.filter(account=account, day__gte=first, day__lte=last).order_by()


def total(rows: QuerySet[UsageDaily]) -> Totals:
    sums = rows.aggregate(**SUMS)
    return Totals(**{name: value for name, value in sums.items() if value is not None})


def group_by(rows: QuerySet[UsageDaily], column: str) -> list[Line]:
    """Return a line for each value of a column (`model`, `key_id`, `day`), highest cost first."""
    grouped = rows.values(column).annotate(**SUMS)
    lines = [Line(row.pop(column), Totals(**row)) for row in grouped]
    return sorted(lines, key=lambda line: (-line.totals.cost, str(line.label)))


def by_day(rows: QuerySet[UsageDaily], first: date, last: date) -> list[Line]:
    """Return a line for each day of a range, with or without usage, newest first."""
    used = {line.label: line for line in group_by(rows, "day")}
    return [used.get(day, Line(day)) for day in _days_back(last, first)]


def _days_back(last: date, first: date) -> Iterator[date]:
    for back in range((last - first).days + 1):
        yield last - timedelta(days=back)


def key_names(account: Account, key_ids: list[int]) -> dict[int, str]:
    keys = ApiKey.objects.filter(account=account, pk__in=key_ids)
    return dict(keys.values_list("pk", "name"))


@dataclass(frozen=True, slots=True)
class BudgetState:
    """A budget for people: amounts in the currency's major unit, or tokens."""

    kind: str
    unit: str
    limit: Decimal | int
    spent: Decimal | int
    held: Decimal | int
    left: Decimal | int


def budgets(account: Account, key: ApiKey, month: str) -> list[BudgetState]:
    """Return the state of every budget that limits a key."""
    binding = Budget.objects.binding(account.pk, key.pk)
    return [budget_state(budget) for budget in in_month(binding, month)]


def in_month(budgets: QuerySet[Budget], month: str) -> QuerySet[Budget]:
    """Annotate budgets with what they have spent and hold in a month, for `budget_state`."""
    row = BudgetPeriod.objects.filter(budget=OuterRef("pk"), period=month)
    return budgets.annotate(
        spent_now=F("spent") + Coalesce(Subquery(row.values("spent")), 0),
        held_now=F("held") + Coalesce(Subquery(row.values("held")), 0),
    )


def budget_state(budget: Any) -> BudgetState:
    """Return the state of a budget that `in_month` annotated."""
    return BudgetState(
        kind=budget.kind,
        unit=budget.unit,
        limit=budget.amount(budget.limit),
        spent=budget.amount(budget.spent_now),
        held=budget.amount(budget.held_now),
        left=budget.amount(budget.limit - budget.spent_now - budget.held_now),
    )


def balance(account: Account) -> Decimal | None:
    """Return what a wallet has left, including held amounts; None for a postpaid account."""
    wallet = Budget.objects.wallets().filter(account=account).first()
    return None if wallet is None else from_units(wallet.limit - wallet.spent)
