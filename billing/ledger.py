"""The only writer of Hold, TokenUsage and UsageDaily; with `budgets.py` of budgets, and with
`entries.py` of wallets and entries.

The invariants, each kept by the statement that could break it:
- A budget never gives more than it has: `steps.TAKE` is one conditional UPDATE, never a read and
  then a write, so any number of processes may race.
- A hold ends once: `settle` passes a gate, `steps.MOVE`, an UPDATE of the state that only one
  caller wins, and all that moves money or counts tokens happens in the gate's transaction. What was
  ended too early, as expired, is adjusted once, through a gate of the same kind.
- held = sum of open holds; spent = sum of billed usage; limit of a wallet = sum of entries;
  roll-up = sum of usage rows. `reconciliation.py` proves them from the rows.
- A request counts in the month of its usage row's day, and is held in every month it may end in.
- Locks are taken in one order everywhere: idempotency key, hold, usage row, budgets by id and their
  months in order, roll-up. So nothing deadlocks. A hold is inserted last: nobody knows it yet.
- Holds and bills are durable: never part of another transaction, whose rollback would undo them.
- Every date is a reading of the database's clock (`clock.py`), one for each hold or settlement.
"""

import json
import logging
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

from django.contrib.auth.models import User
from django.db import connection, transaction
from django.db.models import BigIntegerField, Case, F, QuerySet, Subquery, Sum, Value, When

from accounts import authors
from accounts.models import Account, ApiKey
from billing import budgets, clock, entries, functions, idempotency, pricing, steps
from billing.models import (
    BillingConfig,
    Budget,
    BudgetPeriod,
    Entry,
    Hold,
    LimitChange,
    TokenUsage,
    UsageDaily,
)
from billing.money import MAX_LIMIT, ExactSum, from_units, to_units
from billing.months import LATE, month_of
from billing.price_book import Priced
from billing.reservations import HeldIn, Reservation, Settlement
from billing.usage_rows import adjustment_row, columns_of, require_known, usage_row
from gateway.metering import Demand, Outcome

logger = logging.getLogger(__name__)

# --- Hold, before the model server is asked -----------------------------------------------------


def hold(
    request_id: UUID, demand: Demand, price: Priced, *, worker: str, lease: timedelta
) -> Reservation:
    """Hold the most that a request can cost or use, in every budget that applies.

    Raises Refused, which rolls back what earlier budgets gave.

    `worker` serves it, and is thought to be gone when it is silent for longer than `lease`.
    """
    asked = _asked(request_id, demand, price, worker)
    if connection.vendor == "postgresql":
        held = _hold_by_function(asked, demand, lease)
    else:
        held = _hold_by_steps(asked, demand, lease)
    return Reservation(**asked, rates=price.rates, **held)


@transaction.atomic(durable=True)
def _hold_by_steps(asked: dict[str, Any], demand: Demand, lease: timedelta) -> dict[str, Any]:
    """Write a hold; return what a reservation has of it besides what was asked."""
    # One reading of the clock decides the months and dates the hold.
    now = clock.read()
    if demand.idempotency is not None:
        idempotency.claim(demand.key_id, demand.idempotency, asked["request_id"], now)
    places = budgets.places(budgets.binding(demand.account_id, demand.key_id), now)
    for budget, month in places:
        amount = budget.amount(asked["amount"], asked["tokens"])
        if not budgets.take(budget, month, amount):
            raise budgets.refusal(budget.id, amount)
    held_in = tuple((budget.id, month) for budget, month in places)
    dates = {"opened_at": now, "lease_until": now + lease}
    [(database,)] = steps.rows(
        steps.INSERT_HOLD, **asked, **_open(lease), **dates, held_in=json.dumps(held_in)
    )
    return {"held_in": held_in, "opened_at": now, "database": UUID(str(database))}


def _hold_by_function(asked: dict[str, Any], demand: Demand, lease: timedelta) -> dict[str, Any]:
    """Write a hold as `_hold_by_steps` does, in one round trip."""
    given = json.dumps({**asked, **_open(lease)}, default=str)
    named = demand.idempotency
    with _own_transaction():
        held = functions.hold(given, idempotency.to_json(named) if named else None, lease)
    if held is None and named is not None:
        # Another request has the key. The transaction locks it while that request is looked at.
        with transaction.atomic(durable=True):
            idempotency.claim(demand.key_id, named, asked["request_id"], clock.read())
            held = functions.hold(given, None, lease)
    assert held is not None
    return held


def _own_transaction() -> AbstractContextManager[Any]:
    """Let one statement be a transaction of its own; a block would cost two more round trips. In
    another transaction it is refused. In a test's own transaction it gets a savepoint."""
    return transaction.atomic(durable=True) if connection.in_atomic_block else nullcontext()


def _open(lease: timedelta) -> dict[str, Any]:
    """Return the columns of a hold that is opened now, without its dates."""
    boot_ms = _lease_on_this_machine(lease)
    return {
        "state": Hold.State.OPEN.value,
        "progress": 0,
        "closed_at": None,
        "lease_boot_ms": boot_ms,
    }


def _asked(request_id: UUID, demand: Demand, price: Priced, worker: str) -> dict[str, Any]:
    """Return the columns of a hold, and fields of a reservation, that a demand decides."""
    return {
        "request_id": request_id,
        "account_id": demand.account_id,
        "key_id": demand.key_id,
        "price_id": price.pk,
        "model": demand.model,
        "operation": str(demand.operation),
        "amount": pricing.cost(price.rates, demand.prompt_bound, demand.completion_bound),
        "tokens": demand.prompt_bound + demand.completion_bound,
        "prompt_estimate": demand.prompt_estimate,
        "worker": worker,
    }


def _lease_on_this_machine(lease: timedelta) -> int:
    return clock.since_boot() + lease // timedelta(milliseconds=1)


# --- Settle, when the answer has ended ------------------------------------------------------------


def settle(settlement: Settlement, *, lease_boot_ms: int | None = None) -> TokenUsage | None:
    """End a hold and write its usage row; return None if it had ended already.

    `lease_boot_ms`: end it only if its lease was not renewed since it was read.

    A hold that is not there is written, too, with what the settlement says of it: raises
    UnknownReservation if that cannot be. One that was settled as expired, though its answer went
    on, gets a second row with the difference, and that is returned.
    """
    if connection.vendor == "postgresql" and (
        row := _settle_by_function(settlement, lease_boot_ms)
    ):
        return row
    return _settle_by_steps(settlement, lease_boot_ms)


def _settle_by_function(settlement: Settlement, lease_boot_ms: int | None) -> TokenUsage | None:
    """Settle an open hold in one round trip; return None if there is no such hold."""
    reservation = settlement.reservation
    row = usage_row(settlement, reservation.opened_at)
    state = _final_state(settlement.outcome, settlement.billed)
    with _own_transaction():
        settled_at = functions.settle(columns_of(row), reservation, state.value, lease_boot_ms)
    return usage_row(settlement, settled_at) if settled_at else None


@transaction.atomic(durable=True)
def _settle_by_steps(settlement: Settlement, lease_boot_ms: int | None) -> TokenUsage | None:
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


def _move(
    request_id: UUID, before: Hold.State, after: Hold.State, lease_boot_ms: int | None = None
) -> datetime | None:
    """Move a hold from a state to another; return when, or None if it is not in that state."""
    now = clock.read()
    states = {"before": before.value, "after": after.value}
    moved = steps.write(
        steps.MOVE, request_id=request_id, **states, lease_boot_ms=lease_boot_ms, now=now
    )
    return now if moved else None


@transaction.atomic(durable=True)
def discard(request_id: UUID) -> bool:
    """Delete an open hold and give back what it holds: its request never reached the model server,
    so nothing of it stays. Return whether there was one; one that has ended stays as it is."""
    for account_id, key_id, amount, tokens, held_in in steps.rows(
        steps.DELETE_HOLD, request_id=request_id
    ):
        budgets.release(account_id, key_id, amount, tokens, json.loads(held_in))
        return True
    return False


def _final_state(outcome: Outcome, billed: bool) -> Hold.State:
    if outcome is Outcome.EXPIRED:
        return Hold.State.EXPIRED
    return Hold.State.SETTLED if billed else Hold.State.RELEASED


def _book(settlement: Settlement, held_in: HeldIn, now: datetime) -> TokenUsage:
    """Write a usage row, charge it and count it; `held_in`: where to give back what was held."""
    return _write(settlement.reservation, usage_row(settlement, now), held_in)


def _write(reservation: Reservation, row: TokenUsage, held_in: HeldIn) -> TokenUsage:
    steps.write(steps.INSERT_USAGE, **columns_of(row))
    budgets.charge(reservation, row, held_in)
    _roll_up(row)
    return row


def _book_without_hold(settlement: Settlement) -> TokenUsage | None:
    """Write a settlement of which the database has no hold. No budget has held anything for it."""
    lost = settlement.reservation
    if not settlement.billed and not settlement.usage.started:
        return None  # It never reached the model server, and its hold was deleted.
    require_known(lost)
    now = clock.read()
    asked = {name: getattr(lost, name) for name in LOST}
    ended = {"state": _final_state(settlement.outcome, settlement.billed).value, "closed_at": now}
    leased = {"lease_until": lost.opened_at, "lease_boot_ms": 0, "progress": 0, "held_in": "[]"}
    written = steps.write(steps.INSERT_LOST_HOLD, **asked, **ended, **leased)
    return _book(settlement, (), now) if written else None


# What a reservation says of its hold.
LOST = (
    *("request_id", "account_id", "key_id", "price_id", "model", "operation", "amount", "tokens"),
    *("prompt_estimate", "worker", "opened_at"),
)


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


def _roll_up(row: TokenUsage) -> None:
    columns = columns_of(row)
    if not row.billed:
        columns |= {"prompt_tokens": 0, "completion_tokens": 0}
    counted = {"requests": int(row.adjusts is None), "unbilled": int(not row.billed)}
    steps.write(steps.ROLL_UP, **columns, **counted)


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
    """Put money into an account's wallet, or take it out; raise ValueError if that cannot be.

    A reference is posted once, whoever sends it again.
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
