"""The only writer of Hold, TokenUsage and UsageDaily; with `budgets.py` of budgets, and with
`entries.py` of wallets and entries.

The invariants, each kept by the statement that could break it:
- A budget never gives more than it has: `budgets.take` is one conditional UPDATE, never a read and
  then a write, so any number of processes may race.
- A hold ends once: `settle` passes a gate, an UPDATE of the state that only one caller wins, and
  all that moves money or counts tokens happens in the gate's transaction. What was ended too early,
  as expired, is adjusted once, through a gate of the same kind.
- held = sum of open holds; spent = sum of billed usage; limit of a wallet = sum of entries;
  roll-up = sum of usage rows. `reconciliation.py` proves them from the rows.
- A request counts in the month of its usage row's day, and is held in every month it may end in.
- Locks are taken in one order everywhere: idempotency key, hold, usage row, budgets by id and their
  months in order, roll-up. So nothing deadlocks.
- Holds and bills are durable: never part of another transaction, whose rollback would undo them.
- Every date is a reading of the database's clock by the statement that writes it (`clock.py`).
"""

import logging
from collections.abc import Mapping
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

from django.contrib.auth.models import User
from django.db import connection, transaction
from django.db.models import BigIntegerField, Case, F, QuerySet, Subquery, Sum, Value, When
from django.db.models.expressions import RawSQL

from accounts import authors
from accounts.models import Account, ApiKey
from billing import budgets, clock, entries, idempotency, pricing
from billing.models import (
    BillingConfig,
    Budget,
    BudgetPeriod,
    Entry,
    Hold,
    LimitChange,
    ModelPrice,
    TokenUsage,
    UsageDaily,
)
from billing.money import MAX_LIMIT, ExactSum, from_units, to_units
from billing.months import LATE, month_of
from billing.reservations import Reservation, Settlement, reservation_of
from billing.usage_rows import adjustment_row, require_known, usage_row
from gateway.metering import Demand, Outcome

logger = logging.getLogger(__name__)

HeldIn = tuple[tuple[int, str], ...]


# --- Hold, before the model server is asked -----------------------------------------------------


@transaction.atomic(durable=True)
def hold(
    request_id: UUID, demand: Demand, price: ModelPrice, *, worker: str, lease: timedelta
) -> Reservation:
    """Set a request's most aside in every budget that applies; raise Refused, which rolls back
    what earlier budgets gave.

    `worker` serves it, and is thought to be gone when it is silent for longer than `lease`.
    """
    if demand.idempotency is not None:
        idempotency.claim(demand.key_id, demand.idempotency, request_id)
    # One reading of the clock decides the months and dates the hold.
    found, now = budgets.of(demand.account_id, demand.key_id)
    places = budgets.places(found, now)
    cost = pricing.cost(price.rates, demand.prompt_bound, demand.completion_bound)
    held = _insert_hold(
        request_id=request_id,
        account_id=demand.account_id,
        key_id=demand.key_id,
        price_id=price.pk,
        model=demand.model,
        operation=demand.operation,
        amount=from_units(cost),
        tokens=demand.prompt_bound + demand.completion_bound,
        prompt_estimate=demand.prompt_estimate,
        held_in=[(budget.pk, month) for budget, month in places],
        state=Hold.State.OPEN,
        progress=0,
        worker=worker,
        opened_at=now,
        lease_until=clock.now(lease),
        lease_boot_ms=_lease_on_this_machine(lease),
    )
    # Last: everybody of the account waits for these rows until the commit.
    for budget, month in places:
        amount = cost if budget.unit == Budget.Unit.MONEY else held.tokens
        if not budgets.take(budget, month, amount):
            raise budgets.refusal(budget, amount)
    return reservation_of(held, price.rates)


# Which database it is, is read by the same statement: it may have been exchanged under a process.
_INSERT = """
INSERT INTO billing_hold ({columns}) VALUES ({places}) {otherwise}
RETURNING *, (SELECT database_id FROM billing_billingconfig) AS database
"""


def _insert_hold(otherwise: str = "", **values: Any) -> Any:
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
    columns, marks = ", ".join(values), ", ".join(places)
    insert = _INSERT.format(columns=columns, places=marks, otherwise=otherwise)
    return next(iter(Hold.objects.raw(insert, params)), None)


def _lease_on_this_machine(lease: timedelta) -> int:
    return clock.since_boot() + lease // timedelta(milliseconds=1)


# --- Settle, when the answer has ended ------------------------------------------------------------


@transaction.atomic(durable=True)
def settle(settlement: Settlement, *, lease_boot_ms: int | None = None) -> TokenUsage | None:
    """End a hold and write its usage row; return None if it had ended already.

    `lease_boot_ms`: end it only if its lease was not renewed since it was read.

    A hold that is not there is written, too, with what the settlement says of it: raises
    UnknownReservation if that cannot be. One that was settled as expired, though its answer went
    on, gets a second row with the difference, and that is returned.
    """
    state = _final_state(settlement.outcome, settlement.billed)
    now = _move(settlement.request_id, Hold.State.OPEN, state, lease_boot_ms)
    if now is not None:
        return _book(settlement, settlement.reservation.held_in, now)
    if settlement.outcome is Outcome.EXPIRED:
        return None
    found = Hold.objects.filter(pk=settlement.request_id).values_list("state", flat=True).first()
    if found == Hold.State.EXPIRED:
        return _adjust(settlement)
    return _book_without_hold(settlement) if found is None else None


# The gate. One statement: who comes through also has the time.
_MOVE = """
UPDATE billing_hold SET state = %s, closed_at = {now}
WHERE request_id = %s AND state = %s AND lease_boot_ms = COALESCE(%s, lease_boot_ms)
RETURNING request_id, closed_at
"""


def _move(
    request_id: UUID, before: Hold.State, after: Hold.State, lease_boot_ms: int | None = None
) -> datetime | None:
    """Move a hold from a state to another; return when, or None if it is not in that state."""
    now, params = clock.now_sql()
    which: Any = Hold._meta.pk
    key = which.get_db_prep_value(request_id, connection)
    moved = Hold.objects.raw(_MOVE.format(now=now), [after, *params, key, before, lease_boot_ms])
    hold = next(iter(moved), None)
    return hold.closed_at if hold else None


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
    budgets.release(held)
    return True


def _final_state(outcome: Outcome, billed: bool) -> Hold.State:
    if outcome is Outcome.EXPIRED:
        return Hold.State.EXPIRED
    return Hold.State.SETTLED if billed else Hold.State.RELEASED


def _book(settlement: Settlement, held_in: HeldIn, now: datetime) -> TokenUsage:
    """Write a usage row, charge it and count it; `held_in`: where to give back what was held."""
    return _write(settlement.reservation, usage_row(settlement, now), held_in)


def _write(reservation: Reservation, row: TokenUsage, held_in: HeldIn) -> TokenUsage:
    row.save(force_insert=True)
    budgets.charge(reservation, row, held_in)
    _roll_up(row)
    return row


def _book_without_hold(settlement: Settlement) -> TokenUsage | None:
    """Write a settlement of which the database has no hold. No budget has held anything for it."""
    lost = settlement.reservation
    if not settlement.billed and not settlement.usage.started:
        return None  # It never reached the model server, and its hold was deleted.
    require_known(lost)
    held = _insert_hold(
        otherwise="ON CONFLICT (request_id) DO NOTHING",
        request_id=lost.request_id,
        account_id=lost.account_id,
        key_id=lost.key_id,
        price_id=lost.price_id,
        model=lost.model,
        operation=lost.operation,
        amount=from_units(lost.amount),
        tokens=lost.tokens,
        prompt_estimate=lost.prompt_estimate,
        held_in=[],
        state=_final_state(settlement.outcome, settlement.billed),
        progress=0,
        worker=lost.worker,
        opened_at=lost.opened_at,
        lease_until=lost.opened_at,
        lease_boot_ms=0,
        closed_at=clock.now(),
    )
    return _book(settlement, (), held.closed_at) if held else None


def _adjust(settlement: Settlement) -> TokenUsage | None:
    """Bill the difference to what was booked when the hold was thought to be nobody's."""
    booked = TokenUsage.objects.get(request_id=settlement.request_id)
    now = _move(settlement.request_id, Hold.State.EXPIRED, Hold.State.ADJUSTED)
    if now is None:
        return None
    row = adjustment_row(settlement, booked, now)
    logger.error(
        "Request %s went on after it was settled as expired: %s was billed, it cost %s; the "
        "difference is billed by row %s.",
        *(settlement.request_id, booked.cost, from_units(settlement.cost), row.request_id),
    )
    return _write(settlement.reservation, row, ())


# The ORM can only overwrite on conflict, not add; this statement is the same on both databases.
_UPSERT = """
INSERT INTO billing_usagedaily AS daily
    (account_id, day, key_id, model, price_id,
     requests, unbilled, prompt_tokens, completion_tokens, cost)
VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s)
ON CONFLICT (account_id, day, key_id, model, price_id) DO UPDATE SET
    requests = daily.requests + EXCLUDED.requests,
    unbilled = daily.unbilled + EXCLUDED.unbilled,
    prompt_tokens = daily.prompt_tokens + EXCLUDED.prompt_tokens,
    completion_tokens = daily.completion_tokens + EXCLUDED.completion_tokens,
    cost = daily.cost + EXCLUDED.cost
"""


def _roll_up(row: TokenUsage) -> None:
    counted = (row.prompt_tokens, row.completion_tokens) if row.billed else (0, 0)
    requests = (int(row.adjusts is None), int(not row.billed))
    place: list[Any] = [row.account_id, row.day, row.key_id, row.model, row.price_id]
    with connection.cursor() as cursor:
        cursor.execute(_UPSERT, [*place, *requests, *counted, to_units(row.cost)])


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
    """Return the holds that have not ended, oldest first, each with `now` and its `database`."""
    open_ones = Hold.objects.filter(state=Hold.State.OPEN).order_by("request_id")
    database = BillingConfig.objects.values("database_id")[:1]
    return open_ones.select_related("price").annotate(now=clock.now(), database=Subquery(database))


# --- Money in and out, and limits -----------------------------------------------------------------


@transaction.atomic
def post(
    account: Account,
    amount: Decimal,
    *,
    kind: Entry.Kind,
    reason: str,
    reference: str = "",
    by: User | None = None,
) -> Entry:
    """Add money to an account's wallet, or remove it; raise ValueError if that is impossible.

    An entry with a reference is posted once; a second one with the same reference is rejected.
    """
    if not reason.strip():
        raise ValueError("An entry needs a reason.")
    if amount == 0:
        raise ValueError("An entry moves money; zero does not.")
    wallet = open_budget(account, Budget.Unit.MONEY, Budget.Window.TOTAL, by=by)
    entries.fill(wallet, to_units(amount))
    return entries.insert(
        account, amount, kind=kind, reason=reason.strip(), reference=reference.strip(), by=by
    )


@transaction.atomic
def open_budget(
    account: Account,
    unit: Budget.Unit,
    window: Budget.Window,
    *,
    key: ApiKey | None = None,
    by: User | None = None,
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
    if window == Budget.Window.TOTAL:
        budget.spent = _spent_in(past, unit)
    budget.save(force_insert=True)
    _note_limit(budget, None, budget.limit, by)
    if window == Budget.Window.MONTH:
        _open_months(budget, past)
    return budget


def _open_months(budget: Budget, past: QuerySet[UsageDaily]) -> None:
    """Begin a monthly budget with this month, and early in it also with the one before: who waits
    for us to settle may have read the clock in that one."""
    now = clock.read()
    for month in sorted({month_of(now - LATE), month_of(now)}):
        days = past.filter(day__year=month[:4], day__month=month[5:])
        spent = _spent_in(days, Budget.Unit(budget.unit))
        BudgetPeriod.objects.create(budget=budget, period=month, spent=spent)


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
        if (cost := totals["cost"] or Decimal(0)) > from_units(MAX_LIMIT):
            raise ValueError(f"{cost:,f} was used before: more than a budget can count.")
        return to_units(cost)
    return int((totals["prompt"] or 0) + (totals["completion"] or 0))


@transaction.atomic
def set_limit(budget: Budget, limit: int, *, by: User | None = None) -> None:
    """Change a cap, in smallest units or tokens. A wallet's limit moves by entries alone."""
    if budget.is_wallet:
        raise ValueError("A wallet is filled by entries.")
    same = Budget.objects.filter(pk=budget.pk)
    old = same.select_for_update(no_key=True).values_list("limit", flat=True).get()
    same.update(limit=limit)
    _note_limit(budget, old, limit, by)


def _note_limit(budget: Budget, old: int | None, new: int, by: User | None) -> None:
    LimitChange.objects.create(
        budget=budget, old=old, new=new, changed_by=by, author=authors.name_of(by)
    )
