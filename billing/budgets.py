"""What budgets give to a hold, and take when it ends. Called by the ledger, in its transactions.

A budget without a window counts in its own row; a monthly one in a row for each month.
"""

from datetime import datetime
from typing import Any

from django.db import connection
from django.db.models import F, Q, QuerySet, Value
from django.db.models.expressions import RawSQL
from django.db.models.lookups import GreaterThanOrEqual

from billing import clock
from billing.models import Budget, BudgetPeriod, Hold, TokenUsage
from billing.money import to_units
from billing.months import month_of, months_held
from billing.reservations import Reservation
from gateway.metering import CapReached, NoCredit, Refused


def of(account_id: int, key_id: int) -> tuple[list[Budget], datetime | RawSQL]:
    """Return the budgets that bind a key, in the order of locking, and the database's now."""
    found: list[Any] = list(_mine(account_id, key_id).annotate(now=clock.now()))
    return found, found[0].now if found else clock.now()


def _mine(account_id: int, key_id: int) -> QuerySet[Budget]:
    mine = Q(account_id=account_id) & (Q(key=None) | Q(key_id=key_id))
    return Budget.objects.filter(mine).order_by("id")


def places(found: list[Budget], now: datetime | RawSQL) -> list[tuple[Budget, str]]:
    """Return where a hold that is opened now is held: each budget with a month, or with ""."""
    months = months_held(now) if isinstance(now, datetime) else []
    return [
        (budget, month)
        for budget in found
        for month in (months if budget.window == Budget.Window.MONTH else [""])
    ]


def take(budget: Budget, month: str, amount: int) -> bool:
    """Take an amount from a budget if it has it. The WHERE is the limit; the row count decides.

    What is left is compared, not what would be spent: that sum may leave 64 bits.
    """
    if month:
        limit = budget.limit
        return _write(_TAKE_IN_MONTH, [budget.pk, month, amount, limit, amount, limit]) == 1
    enough = GreaterThanOrEqual(F("limit") - F("spent") - F("held"), Value(amount))
    return Budget.objects.filter(enough, pk=budget.pk).update(held=F("held") + Value(amount)) == 1


# The row of a month is made by the first request in it. The limit was read by this transaction; who
# changes it meanwhile changes it after this request.
_TAKE_IN_MONTH = """
INSERT INTO billing_budgetperiod AS month (budget_id, period, spent, held)
SELECT %s, %s, 0, %s WHERE %s >= %s
ON CONFLICT (budget_id, period) DO UPDATE SET held = month.held + EXCLUDED.held
WHERE %s - month.spent - month.held >= EXCLUDED.held
"""


def require_credit(account_id: int) -> None:
    """Raise NoCredit for a wallet with nothing left; without a wallet an account is postpaid."""
    money, total = Budget.Unit.MONEY, Budget.Window.TOTAL
    wallets = Budget.objects.filter(account_id=account_id, key=None, unit=money, window=total)
    if any(wallet.left <= 0 for wallet in wallets):
        raise NoCredit("The account has no credit left. Top it up.")


def refusal(budget: Budget, amount: int) -> Refused:
    needed = budget.amount(amount)
    if budget.is_wallet:
        left = budget.amount(max(budget.left, 0))
        return NoCredit(
            f"This request may cost up to {needed:f}, and the account has {left:f} left. "
            "Ask for fewer tokens, or top the account up."
        )
    unit = "money" if budget.unit == Budget.Unit.MONEY else "tokens"
    most = f"{needed:f}" if budget.unit == Budget.Unit.MONEY else str(needed)
    return CapReached(f"This request may take up to {most} ({unit}), more than its cap has left.")


def charge(reservation: Reservation, row: TokenUsage, held_in: tuple[tuple[int, str], ...]) -> None:
    """Give back what was held and take what was used, in every budget that applies now: one that
    was opened since the hold gave nothing to it, but counts what it used."""
    for budget in _mine(row.account_id, row.key_id):
        money = budget.unit == Budget.Unit.MONEY
        held = reservation.amount if money else reservation.tokens
        used = (to_units(row.cost) if money else row.total_tokens) if row.billed else 0
        gave = [month for budget_id, month in held_in if budget_id == budget.pk]
        if budget.window == Budget.Window.MONTH:
            _charge_months(budget, gave, held, used, month_of(row.settled_at))
        else:
            given = held if gave else 0
            Budget.objects.filter(pk=budget.pk).update(
                held=F("held") - Value(given), spent=F("spent") + Value(used)
            )


def release(held: Hold) -> None:
    """Give back all that was held, in every budget and month that gave it."""
    for budget in _mine(held.account_id, held.key_id):
        amount = to_units(held.amount) if budget.unit == Budget.Unit.MONEY else held.tokens
        gave = [month for budget_id, month in held.held_in if budget_id == budget.pk]
        if budget.window == Budget.Window.MONTH:
            _charge_months(budget, gave, amount, 0, "")
        elif gave:
            Budget.objects.filter(pk=budget.pk).update(held=F("held") - Value(amount))


def _charge_months(budget: Budget, gave: list[str], held: int, used: int, this: str) -> None:
    for month in gave:
        BudgetPeriod.objects.filter(budget=budget, period=month).update(
            held=F("held") - Value(held), spent=F("spent") + Value(used if month == this else 0)
        )
    if used and this not in gave:
        _write(_SPEND_IN_MONTH, [budget.pk, this, used])


_SPEND_IN_MONTH = """
INSERT INTO billing_budgetperiod AS month (budget_id, period, spent, held) VALUES (%s, %s, %s, 0)
ON CONFLICT (budget_id, period) DO UPDATE SET spent = month.spent + EXCLUDED.spent
"""


def _write(statement: str, params: list[Any]) -> int:
    """Execute a statement that the ORM has no words for; return the number of rows written."""
    with connection.cursor() as cursor:
        cursor.execute(statement, params)
        return int(cursor.rowcount)
