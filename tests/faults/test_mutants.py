"""Planted bugs: each must make the proofs of the ledger fail, or they prove nothing."""

import threading
from collections.abc import Callable
from typing import Any

import pytest
from django.db import DatabaseError, connection, transaction
from django.db.models import F, Value
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from billing import budgets, journal, ledger, reconciliation
from billing.models import Budget, Hold, ModelPrice, TokenUsage
from billing.reservations import Reservation, Settlement
from gateway.metering import Refused
from tests.billing import test_crash_at_any_statement as crash
from tests.billing.test_ledger import reserve
from tests.billing.test_ledger import (
    test_many_who_settle_the_same_hold_bill_once as settle_at_once,
)
from tests.billing.test_ledger_machine import Ledger
from tests.harness.callers import Caller, new_caller, set_price

RACERS, PAID_FOR = 8, 3

caller = crash.caller

Mutation = Callable[[pytest.MonkeyPatch], None]


def settle_without_the_gate(monkeypatch: pytest.MonkeyPatch) -> None:
    """Settle without checking the state of the hold."""
    open_the_gate(monkeypatch)
    # The unique request id would still refuse the second row, so the row is not written.
    monkeypatch.setattr(TokenUsage, "save", lambda *_args, **_kwargs: None)


def open_the_gate(monkeypatch: pytest.MonkeyPatch) -> None:
    gate = ledger._MOVE
    assert "AND state = %s" in gate
    monkeypatch.setattr(ledger, "_MOVE", gate.replace("AND state = %s", "AND state <> %s || '?'"))


def hold_that_reads_then_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Check whether there is room, then take it, in two statements."""

    def look_then_take(budget: Budget, month: str, amount: int) -> bool:
        seen = Budget.objects.get(pk=budget.pk)
        if seen.left < amount:
            return False
        meet_others()
        Budget.objects.filter(pk=budget.pk).update(held=F("held") + Value(amount))
        return True

    monkeypatch.setattr(budgets, "take", look_then_take)


def settling_that_forgets_the_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    """Charge the usage without releasing the hold."""
    honest = budgets.charge

    def charge(reservation: Reservation, row: Any, held_in: Any) -> None:
        honest(reservation, row, ())

    monkeypatch.setattr(budgets, "charge", charge)


def roll_up_counted_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = ledger._roll_up
    monkeypatch.setattr(ledger, "_roll_up", lambda row: (honest(row), honest(row)))


# --- Planted bugs that only a crash can show -----------------------------------------------------


def gate_and_charge_in_two_transactions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commit the end of the hold first, then its row and its charge."""

    honest = ledger.settle

    def settle(settlement: Settlement, *, lease_boot_ms: int | None = None) -> Any:
        state = ledger._final_state(settlement.outcome, settlement.billed)
        now = ledger._move(settlement.request_id, Hold.State.OPEN, state, lease_boot_ms)
        if now is None:
            # Adjustments and missing holds are not part of this bug.
            return honest(settlement, lease_boot_ms=lease_boot_ms)
        with transaction.atomic():
            return ledger._book(settlement, settlement.reservation.held_in, now)

    monkeypatch.setattr(ledger, "settle", settle)


def money_posted_in_two_transactions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Change the wallet's limit and write the entry, without a transaction around both."""
    monkeypatch.setattr(ledger, "post", ledger.post.__wrapped__)  # type: ignore[attr-defined]


def endings_that_no_journal_keeps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget a settlement that cannot be committed now, although its client saw the cost."""
    monkeypatch.setattr(journal, "write", lambda _ending: None)


CRASH_MUTANTS = [
    (gate_and_charge_in_two_transactions, crash.answers_a_request, crash.KILLED),
    (money_posted_in_two_transactions, crash.posts_money, crash.KILLED),
    (endings_that_no_journal_keeps, crash.answers_a_request, crash.AWAY),
]


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(
    ("mutation", "scene", "failure"),
    CRASH_MUTANTS,
    ids=crash.name_of,
)
def test_cutting_at_every_statement_turns_red(
    monkeypatch: pytest.MonkeyPatch,
    caller: Caller,
    mutation: Mutation,
    scene: crash.Scene,
    failure: crash.Failure,
) -> None:
    mutation(monkeypatch)

    with pytest.raises(AssertionError):
        crash.cut_everywhere(scene, caller, failure)


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(
    ("mutation", "scene", "failure"),
    CRASH_MUTANTS,
    ids=crash.name_of,
)
def test_without_a_cut_the_bug_is_not_found(
    monkeypatch: pytest.MonkeyPatch,
    caller: Caller,
    mutation: Mutation,
    scene: crash.Scene,
    failure: crash.Failure,
) -> None:
    mutation(monkeypatch)

    crash.perform(scene, caller, crash.Cut(crash.NOWHERE, False, failure))


# --- The stateful machine ------------------------------------------------------------------------


class Undisturbed(Ledger):
    """The machine without the rule that crashes a process."""

    def crash_next(self, at: int, after: bool) -> None:
        raise AssertionError("not a rule")


def run_machine(machine: type[Ledger] = Ledger, examples: int = 25) -> None:
    """Run it as the suite does, without the time to shrink a failing example."""
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=30,
            deadline=None,
            database=None,
            derandomize=True,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        ),
    )


@pytest.mark.django_db
@pytest.mark.parametrize(
    "mutation",
    [
        settle_without_the_gate,
        settling_that_forgets_the_hold,
        roll_up_counted_twice,
        gate_and_charge_in_two_transactions,
    ],
    ids=lambda mutation: mutation.__name__,
)
def test_the_machine_turns_red(monkeypatch: pytest.MonkeyPatch, mutation: Mutation) -> None:
    mutation(monkeypatch)

    with pytest.raises((AssertionError, DatabaseError)):
        run_machine(examples=100)  # It stops at the first failing example.


@pytest.mark.django_db
def test_a_machine_without_crashes_does_not_find_the_split_gate(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gate_and_charge_in_two_transactions(monkeypatch)

    run_machine(Undisturbed)


@pytest.mark.django_db
def test_the_machine_is_green_without_a_mutation() -> None:
    run_machine()


# --- The races -----------------------------------------------------------------------------------

_meeting: list[threading.Barrier] = []


def meet_others() -> None:
    """Let all threads arrive between their read and their write."""
    if _meeting:
        try:
            _meeting[0].wait(1)
        except threading.BrokenBarrierError:
            return


def race_for_the_last_credit(caller: Caller, price: ModelPrice) -> int:
    """Reserve from many threads at once; return how many were admitted."""
    admitted: list[Hold] = []
    start = threading.Barrier(RACERS)

    def run() -> None:
        try:
            start.wait(10)
            admitted.append(reserve(caller, price))
        except (Refused, DatabaseError):
            pass
        finally:
            connection.close()

    threads = [threading.Thread(target=run) for _ in range(RACERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    return len(admitted)


def poor_caller() -> tuple[Caller, ModelPrice]:
    """A customer with credit for three requests of 0.0006 each."""
    price = set_price("llama3", "0.002", "0.004")
    return new_caller("Poor", credit="0.0018"), price


@pytest.mark.usefixtures("transactional_db")
def test_exactly_as_many_requests_as_the_credit_covers_are_admitted() -> None:
    assert race_for_the_last_credit(*poor_caller()) == PAID_FOR


@pytest.mark.usefixtures("transactional_db")
def test_reading_and_then_writing_admits_too_many_where_writers_run_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On SQLite a transaction takes the only write lock at its start (IMMEDIATE), so the bug cannot
    show: the setting prevents it. `reconcile` would not see it either."""
    monkeypatch.setattr(f"{__name__}._meeting", [threading.Barrier(RACERS)])
    hold_that_reads_then_writes(monkeypatch)

    admitted = race_for_the_last_credit(*poor_caller())

    if connection.vendor == "postgresql":
        assert admitted > PAID_FOR
    else:
        assert connection.settings_dict["OPTIONS"]["transaction_mode"] == "IMMEDIATE"
        assert admitted == PAID_FOR


@pytest.mark.django_db(transaction=True)
def test_settling_at_once_without_the_gate_turns_red(
    alice: Caller, priced: ModelPrice, monkeypatch: pytest.MonkeyPatch
) -> None:
    settle_without_the_gate(monkeypatch)

    with pytest.raises((AssertionError, DatabaseError)):
        settle_at_once(alice, priced)


@pytest.mark.django_db
def test_the_unique_request_id_alone_keeps_a_second_row_out(
    alice: Caller, priced: ModelPrice, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the gate the database still refuses the second row."""
    from tests.billing.test_ledger import finish

    hold = reserve(alice, priced)
    finish(hold)
    open_the_gate(monkeypatch)
    with pytest.raises(DatabaseError):
        finish(hold)
    monkeypatch.undo()

    assert not any(found for _check, found in reconciliation.differences())


# --- Reconcile names the row ---------------------------------------------------------------------

TAMPERINGS = {
    "every row matches its hold": "UPDATE billing_hold SET operation = 'embed'",
    "held amounts are the sums of open holds": (
        "UPDATE billing_hold SET state = 'open', held_in = '[[987654, \"\"]]'"
    ),
}


@pytest.mark.parametrize("name", TAMPERINGS)
def test_reconcile_names_the_row_that_somebody_changed(
    alice: Caller, priced: ModelPrice, name: str
) -> None:
    from tests.billing.test_ledger import finish

    hold = reserve(alice, priced)
    finish(hold)
    with connection.cursor() as cursor:
        cursor.execute(TAMPERINGS[name])

    found = {check.name: named for check, named in reconciliation.differences() if named}

    assert any(str(hold.request_id) in line for line in found[name])
