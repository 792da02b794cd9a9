"""What budgets give to a hold, and take when it ends. Called by the ledger, in its transactions.

A budget without a window counts in its own row; a monthly one in a row for each month.
"""

from datetime import datetime
from typing import Any, NamedTuple

from billing import steps
from billing.models import Budget, TokenUsage
from billing.money import to_units
from billing.months import month_of, months_held
from billing.reservations import HeldIn, Reservation
from gateway.metering import CapReached, NoCredit, Refused


class Bound(NamedTuple):
    """A budget that limits a request, as `steps.BUDGETS` reads it."""

    id: int
    unit: str
    window: str
    limit: int

    def amount(self, money: int, tokens: int) -> int:
        """Return the one of two amounts that this budget counts."""
        return money if self.unit == Budget.Unit.MONEY else tokens

    @property
    def is_monthly(self) -> bool:
        return self.window == Budget.Window.MONTH


def binding(account_id: int, key_id: int) -> list[Bound]:
    """Return the budgets that limit a key, in locking order."""
    found = steps.rows(steps.BUDGETS, account_id=account_id, key_id=key_id)
    return [Bound(*row) for row in found]


def places(found: list[Bound], now: datetime) -> list[tuple[Bound, str]]:
    """Return where a hold that is opened now is held: each budget with a month, or with ""."""
    months = months_held(now)
    return [(one, month) for one in found for month in (months if one.is_monthly else [""])]


def take(budget: Bound, month: str, amount: int) -> bool:
    """Hold an amount of a budget, if the budget has it left; return whether it had."""
    if not month:
        return steps.write(steps.TAKE, budget_id=budget.id, amount=amount) == 1
    place: dict[str, Any] = {"budget_id": budget.id, "month": month, "limit": budget.limit}
    return steps.write(steps.TAKE_IN_MONTH, **place, amount=amount) == 1


def require_credit(account_id: int) -> None:
    """Raise NoCredit for a wallet with nothing left; without a wallet an account is postpaid."""
    money, total = Budget.Unit.MONEY, Budget.Window.TOTAL
    wallets = Budget.objects.filter(account_id=account_id, key=None, unit=money, window=total)
    if any(wallet.left <= 0 for wallet in wallets):
        raise NoCredit("The account has no credit left. Top it up.")


def refusal(budget_id: int, amount: int) -> Refused:
    budget = Budget.objects.get(pk=budget_id)
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


def charge(reservation: Reservation, row: TokenUsage, held_in: HeldIn) -> None:
    """Give back what was held and take what was used, in every budget that applies now: one that
    was opened since the hold gave nothing to it, but counts what it used."""
    cost, tokens = (to_units(row.cost), row.total_tokens) if row.billed else (0, 0)
    for budget in binding(row.account_id, row.key_id):
        held = budget.amount(reservation.amount, reservation.tokens)
        used = budget.amount(cost, tokens)
        _charge(budget, _months(budget, held_in), held, used, month_of(row.settled_at))


def release(account_id: int, key_id: int, money: int, tokens: int, held_in: HeldIn) -> None:
    """Give back all that was held, in every budget and month that gave it."""
    for budget in binding(account_id, key_id):
        amount = budget.amount(money, tokens)
        _charge(budget, _months(budget, held_in), amount, 0, "")


def _months(budget: Bound, held_in: HeldIn) -> list[str]:
    """Return the months of a budget that gave to a hold; of one without months, "" if it gave."""
    return [month for budget_id, month in held_in if budget_id == budget.id]


def _charge(budget: Bound, gave: list[str], held: int, used: int, this: str) -> None:
    if not budget.is_monthly:
        steps.write(steps.CHARGE, budget_id=budget.id, held=held if gave else 0, used=used)
        return
    for month in gave:
        place: dict[str, Any] = {"budget_id": budget.id, "month": month}
        steps.write(steps.CHARGE_MONTH, **place, held=held, used=used if month == this else 0)
    if used and this not in gave:
        steps.write(steps.SPEND_IN_MONTH, budget_id=budget.id, month=this, used=used)
