"""The only file that writes Budget, Hold, TokenUsage, UsageDaily and Entry.

The invariants, each kept by the statement that could break it:
- A budget never gives more than it has: `_reserve` is one conditional UPDATE, never a read and
  then a write, so any number of processes may race.
- A hold ends once: `settle` passes a gate, an UPDATE of the state that only one caller wins, and
  all that moves money or counts tokens happens in the gate's transaction.
- held = sum of open holds; spent = sum of billed usage; limit of a wallet = sum of entries;
  roll-up = sum of usage rows. `reconciliation.py` proves them from the rows.
- A month that is over stays over: requests end out of order, and a late one must not open it again.
- Locks are taken in one order everywhere: idempotency key, hold, usage row, budgets by id,
  roll-up. So nothing deadlocks.
- Holds and bills are durable: never part of another transaction, whose rollback would undo them.
- Every date is a reading of the database's clock by the statement that writes it (`clock.py`).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

from django.contrib.auth.models import User
from django.db import connection, transaction
from django.db.models import BigIntegerField, Case, F, Q, QuerySet, Sum, Value, When
from django.db.models.expressions import Combinable, RawSQL
from django.db.models.lookups import GreaterThanOrEqual

from accounts.models import Account, ApiKey
from billing import clock, idempotency, pricing
from billing.models import Budget, Entry, Hold, ModelPrice, TokenUsage, UsageDaily
from billing.money import MAX_LIMIT, MAX_PICO, ExactSum, from_pico, to_pico
from gateway.metering import CapReached, Demand, NoCredit, Outcome, Refused, Usage

# How far below zero a wallet's limit may be taken: with MAX_LIMIT spent, what is left fits 64 bits.
DEEPEST = MAX_LIMIT - MAX_PICO


@dataclass(frozen=True, slots=True)
class Reservation:
    """A demand with its price pinned, by whom it is served and how long that may be silent."""

    request_id: UUID
    demand: Demand
    price: ModelPrice
    worker: str
    lease: timedelta

    @property
    def cost(self) -> int:
        """Return the most the request can cost, in pico."""
        demand = self.demand
        return pricing.cost(self.price.rates, demand.prompt_bound, demand.completion_bound)

    @property
    def tokens(self) -> int:
        return self.demand.prompt_bound + self.demand.completion_bound


# --- Hold, before the model server is asked -----------------------------------------------------


@transaction.atomic(durable=True)
def hold(reservation: Reservation) -> Hold:
    """Set a request's most aside in every budget that applies; raise Refused, which rolls back
    what earlier budgets gave."""
    demand = reservation.demand
    if demand.idempotency is not None:
        idempotency.claim(demand.key_id, demand.idempotency, reservation.request_id)
    budgets = list(_budgets_of(demand.account_id, demand.key_id))
    held = _open(reservation, [budget.pk for budget in budgets])
    # Last: everybody of the account waits for these rows until the commit.
    for budget in budgets:
        money = budget.unit == Budget.Unit.MONEY
        amount = reservation.cost if money else reservation.tokens
        if not _reserve(budget, amount, held.opened_at):
            raise _refusal(budget, amount)
    return held


def _open(reservation: Reservation, budget_ids: list[int]) -> Hold:
    demand = reservation.demand
    return _insert_hold(
        request_id=reservation.request_id,
        account_id=demand.account_id,
        key_id=demand.key_id,
        price_id=reservation.price.pk,
        model=demand.model,
        operation=demand.operation,
        amount=from_pico(reservation.cost),
        tokens=reservation.tokens,
        prompt_estimate=demand.prompt_estimate,
        budget_ids=budget_ids,
        state=Hold.State.OPEN,
        progress=0,
        worker=reservation.worker,
        opened_at=clock.now(),
        lease_until=clock.now(reservation.lease),
        lease_boot_ms=_lease_on_this_machine(reservation.lease),
    )


_INSERT = "INSERT INTO billing_hold ({columns}) VALUES ({places}) RETURNING *"


def _insert_hold(**values: Any) -> Hold:
    """Insert a row and return it as the database has it; the ORM would not return its clock."""
    places, params = [], []
    for name, value in values.items():
        if isinstance(value, RawSQL):
            places.append(value.sql)
            params += value.params
        else:
            places.append("%s")
            field: Any = Hold._meta.get_field(name)
            params.append(field.get_db_prep_save(value, connection))
    insert = _INSERT.format(columns=", ".join(values), places=", ".join(places))
    return Hold.objects.raw(insert, params)[0]


def _lease_on_this_machine(lease: timedelta) -> int:
    return clock.since_boot() + lease // timedelta(milliseconds=1)


def _budgets_of(account_id: int, key_id: int) -> QuerySet[Budget]:
    mine = Q(account_id=account_id) & (Q(key=None) | Q(key_id=key_id))
    return Budget.objects.filter(mine).order_by("id")


def _reserve(budget: Budget, amount: int, now: datetime) -> bool:
    """Take an amount from a budget if it has it. The WHERE is the limit; the row count decides.

    What is left is compared, not what would be spent: that sum may leave 64 bits.
    """
    spent, period = _spent_with(budget, 0, now)
    enough = GreaterThanOrEqual(F("limit") - spent - F("held"), Value(amount))
    room = Budget.objects.filter(enough, pk=budget.pk)
    return room.update(held=F("held") + Value(amount), spent=spent, period=period) == 1


def _spent_with(budget: Budget, used: int, now: datetime) -> tuple[Combinable, Combinable | str]:
    """Return what counts as spent when an amount is used now, and in which period.

    A month begins with the first request in it. What comes late, of the month before, counts for
    its day in the usage but for no cap any more. Only of the month before: a clock that was once
    far ahead must not keep a cap from counting until then.
    """
    if budget.window == Budget.Window.TOTAL:
        return F("spent") + Value(used), ""
    this, following = period_of(now), period_after(now)
    spent = Case(
        When(period=this, then=F("spent") + Value(used)),
        When(period=following, then=F("spent")),
        default=Value(used),
        output_field=BigIntegerField(),
    )
    return spent, Case(When(period=following, then=F("period")), default=Value(this))


def period_of(now: datetime) -> str:
    return f"{now:%Y-%m}"


def period_after(now: datetime) -> str:
    return period_of(now.replace(day=1) + timedelta(days=31))


def _refusal(budget: Budget, amount: int) -> Refused:
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


# --- Settle, when the answer has ended ------------------------------------------------------------


# One statement: who wins the gate also reads the clock and the hold.
_END = """
UPDATE billing_hold SET state = %s, closed_at = {now}
WHERE request_id = %s AND state = 'open' AND lease_boot_ms = COALESCE(%s, lease_boot_ms)
RETURNING *
"""


@transaction.atomic(durable=True)
def settle(
    request_id: UUID,
    usage: Usage,
    *,
    outcome: Outcome,
    billed: bool,
    lease_boot_ms: int | None = None,
) -> TokenUsage | None:
    """End a hold and write its usage row; return None if it had ended already.

    `lease_boot_ms`: end it only if its lease was not renewed since it was read.
    """
    ended = _end(request_id, _final_state(outcome, billed), lease_boot_ms)
    if ended is None:
        return None
    row = _usage_row(ended, usage, outcome=outcome, billed=billed)
    row.save(force_insert=True)
    _charge(ended, row)
    _roll_up(row)
    return row


def _end(request_id: UUID, state: Hold.State, lease_boot_ms: int | None) -> Hold | None:
    now, params = clock.now_sql()
    which: Any = Hold._meta.pk
    key = which.get_db_prep_value(request_id, connection)
    gate = Hold.objects.raw(_END.format(now=now), [state, *params, key, lease_boot_ms])
    return next(iter(gate), None)


@transaction.atomic(durable=True)
def discard(request_id: UUID) -> bool:
    """Delete an open hold and give back what it holds: its request never reached the model server,
    so nothing of it stays. Return whether there was one; one that has ended stays as it is."""
    held = Hold.objects.filter(pk=request_id, state=Hold.State.OPEN).first()
    if held is None:
        return False
    deleted, _by_model = Hold.objects.filter(pk=request_id, state=Hold.State.OPEN).delete()
    if not deleted:
        return False  # Somebody settled it meanwhile.
    for budget in _budgets_of(held.account_id, held.key_id).filter(pk__in=held.budget_ids):
        money = budget.unit == Budget.Unit.MONEY
        given = to_pico(held.amount) if money else held.tokens
        Budget.objects.filter(pk=budget.pk).update(held=F("held") - Value(given))
    return True


def _final_state(outcome: Outcome, billed: bool) -> Hold.State:
    if outcome is Outcome.EXPIRED:
        return Hold.State.EXPIRED
    return Hold.State.SETTLED if billed else Hold.State.RELEASED


def _usage_row(hold: Hold, usage: Usage, *, outcome: Outcome, billed: bool) -> TokenUsage:
    rates = hold.price.rates
    now = hold.closed_at
    assert now is not None
    cost = pricing.cost(rates, usage.prompt_tokens, usage.completion_tokens) if billed else 0
    return TokenUsage(
        request_id=hold.request_id,
        account_id=hold.account_id,
        key_id=hold.key_id,
        price=hold.price,
        model=hold.model,
        operation=hold.operation,
        prompt_tokens=usage.prompt_tokens,
        completion_tokens=usage.completion_tokens,
        prompt_price=rates.prompt,
        completion_price=rates.completion,
        request_price=rates.request,
        billed=billed,
        cost=from_pico(cost),
        outcome=outcome,
        count_source=usage.source,
        started_at=hold.opened_at,
        settled_at=now,
        day=now.date(),
    )


def _charge(ended: Hold, row: TokenUsage) -> None:
    """Give back what was held and take what was used, in every budget that applies now: one that
    was opened since the hold gave nothing to it, but counts what it used."""
    for budget in _budgets_of(ended.account_id, ended.key_id):
        money = budget.unit == Budget.Unit.MONEY
        held = to_pico(ended.amount) if money else ended.tokens
        used = (to_pico(row.cost) if money else row.total_tokens) if row.billed else 0
        given = held if budget.pk in ended.budget_ids else 0
        spent, period = _spent_with(budget, used, row.settled_at)
        Budget.objects.filter(pk=budget.pk).update(
            held=F("held") - Value(given), spent=spent, period=period
        )


# The ORM can only overwrite on conflict, not add; this statement is the same on both databases.
_UPSERT = """
INSERT INTO billing_usagedaily AS daily
    (account_id, day, key_id, model, price_id,
     requests, unbilled, prompt_tokens, completion_tokens, cost)
VALUES (%s, %s, %s, %s, %s, 1, %s, %s, %s, %s)
ON CONFLICT (account_id, day, key_id, model, price_id) DO UPDATE SET
    requests = daily.requests + EXCLUDED.requests,
    unbilled = daily.unbilled + EXCLUDED.unbilled,
    prompt_tokens = daily.prompt_tokens + EXCLUDED.prompt_tokens,
    completion_tokens = daily.completion_tokens + EXCLUDED.completion_tokens,
    cost = daily.cost + EXCLUDED.cost
"""


def _roll_up(row: TokenUsage) -> None:
    counted = (row.prompt_tokens, row.completion_tokens) if row.billed else (0, 0)
    place: list[Any] = [row.account_id, row.day, row.key_id, row.model, row.price_id]
    with connection.cursor() as cursor:
        cursor.execute(_UPSERT, [*place, int(not row.billed), *counted, to_pico(row.cost)])


# --- Leases -----------------------------------------------------------------------------------


def renew(produced: Mapping[UUID, int], lease: timedelta) -> None:
    """Extend the leases of holds that are being served, noting the tokens produced so far."""
    if not produced:
        return
    cases = [When(pk=request_id, then=Value(tokens)) for request_id, tokens in produced.items()]
    Hold.objects.filter(pk__in=list(produced), state=Hold.State.OPEN).update(
        progress=Case(*cases, default=F("progress"), output_field=BigIntegerField()),
        lease_until=clock.now(lease),
        lease_boot_ms=_lease_on_this_machine(lease),
    )


def open_holds() -> QuerySet[Hold]:
    """Return the holds that have not ended, oldest first, each with the database's `now`."""
    open_ones = Hold.objects.filter(state=Hold.State.OPEN).order_by("request_id")
    return open_ones.annotate(now=clock.now())


# --- Money in and out, and limits -----------------------------------------------------------------


@transaction.atomic
def post(
    account: Account, amount: Decimal, *, kind: Entry.Kind, reason: str, by: User | None = None
) -> Entry:
    """Put money into an account's wallet, or take it out; raise ValueError if that cannot be."""
    if not reason.strip():
        raise ValueError("An entry needs a reason.")
    if amount == 0:
        raise ValueError("An entry moves money; zero does not.")
    wallet = open_budget(account, Budget.Unit.MONEY, Budget.Window.TOTAL)
    pico = to_pico(amount)
    if not _move_limit(wallet, pico):
        bound = from_pico(MAX_LIMIT if pico > 0 else DEEPEST)
        raise ValueError(f"That is too much: what a wallet was given ends at {bound:,f}.")
    return Entry.objects.create(
        account=account, kind=kind, amount=amount, reason=reason.strip(), created_by=by
    )


def _move_limit(wallet: Budget, pico: int) -> bool:
    """Change what a wallet was given in all, unless that leaves what it can count."""
    least, most = max(DEEPEST - pico, -MAX_PICO), min(MAX_LIMIT - pico, MAX_PICO)
    fits = Budget.objects.filter(pk=wallet.pk, limit__range=(least, most))
    return fits.update(limit=F("limit") + Value(pico)) == 1


@transaction.atomic
def open_budget(
    account: Account,
    unit: Budget.Unit,
    window: Budget.Window,
    *,
    key: ApiKey | None = None,
    now: datetime | None = None,
) -> Budget:
    """Return a budget, made if it is not there; a new one counts what was spent before it.

    Raises ValueError if that is more than a budget can count.
    """
    same = Budget.objects.filter(account=account, key=key, unit=unit, window=window)
    if found := same.first():
        return found
    _stop_settling()
    if found := same.first():
        return found  # Another was opening it too, and was first.
    budget = Budget(account=account, key=key, unit=unit, window=window)
    past = UsageDaily.objects.filter(account=account, **({"key": key} if key else {}))
    if window == Budget.Window.MONTH:
        if now is None:
            raise ValueError("A monthly budget begins at a time.")
        budget.period = period_of(now)
        past = past.filter(day__year=now.year, day__month=now.month)
    budget.spent = _spent_in(past, unit)
    budget.save(force_insert=True)
    return budget


def _stop_settling() -> None:
    """Wait for settling transactions that are half-way, and let none begin, while a new budget
    sums up the past: such a one would count for neither. Each of them inserts a usage row before
    it looks for budgets, so that table is the one to lock. SQLite has one writer, and that is us.
    """
    if connection.vendor == "postgresql":
        with connection.cursor() as cursor:
            cursor.execute(f"LOCK TABLE {TokenUsage._meta.db_table} IN SHARE ROW EXCLUSIVE MODE")


def _spent_in(past: QuerySet[UsageDaily], unit: Budget.Unit) -> int:
    totals: dict[str, Any] = past.aggregate(
        cost=ExactSum("cost"), prompt=Sum("prompt_tokens"), completion=Sum("completion_tokens")
    )
    if unit == Budget.Unit.MONEY:
        if (cost := totals["cost"] or Decimal(0)) > from_pico(MAX_LIMIT):
            raise ValueError(f"{cost:,f} was used before: more than a budget can count.")
        return to_pico(cost)
    return int((totals["prompt"] or 0) + (totals["completion"] or 0))


def set_limit(budget: Budget, limit: int) -> None:
    """Change a cap, in pico or tokens. A wallet's limit moves by entries alone."""
    if budget.is_wallet:
        raise ValueError("A wallet is filled by entries.")
    Budget.objects.filter(pk=budget.pk).update(limit=limit)
