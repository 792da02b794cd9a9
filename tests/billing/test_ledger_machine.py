"""Any order of top-ups, price changes, holds, settling, expiry, months and crashes keeps the books.

Here a crash is the end of the process in which an event happens, at one of its statements: what
was committed stays, what was not never was, and the next process sweeps what is left open.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, NoReturn

import pytest
from django.db import connection, transaction
from django.db.models import Sum
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)

from billing import ledger, price_book, pricing, processes, reconciliation, recovery
from billing.models import Budget, Entry, Hold, TokenUsage
from billing.money import from_units
from billing.reservations import Reservation, Settlement
from gateway.http.request_ids import new_request_id
from gateway.metering import Demand, Operation, Outcome, Refused, Usage
from tests.billing.test_crash_at_any_statement import (
    DEAD,
    NOWHERE,
    Cut,
    Failure,
    Killed,
)
from tests.billing.test_ledger import reserved
from tests.harness.callers import Caller, database_time, new_caller

TOKENS = st.integers(0, 10_000)
WORKER = processes.identity().rpartition("/")[0] + f"/{DEAD}"


def kill() -> NoReturn:
    raise Killed


CRASH = Failure("the process is killed", kill, lasts=True)


def commit() -> None:
    """All runs in the test's transaction, so a savepoint is what nothing takes back any more."""
    connection.connection.execute("SAVEPOINT committed")


def lose_what_is_not_committed() -> None:
    connection.connection.execute("ROLLBACK TO SAVEPOINT committed")


@dataclass
class Open:
    """What the machine knows of a hold that has not ended."""

    rates: pricing.Rates
    prompt_estimate: int
    reservation: Reservation | None = None
    produced: int = 0

    @property
    def cost_when_swept(self) -> Decimal:
        """An orphan costs what was known to be produced, and nothing if that is nothing."""
        if not self.produced:
            return Decimal(0)
        return from_units(pricing.cost(self.rates, self.prompt_estimate, self.produced))


class Ledger(RuleBasedStateMachine):
    holds = Bundle("holds")

    @initialize()
    def begin(self) -> None:
        self.now = datetime(2026, 11, 30, 23, 0, tzinfo=UTC)
        # Each run is rolled back, as a test is; the ledger then sees no outer transaction.
        self.rollback = transaction.atomic()
        self.rollback._from_testcase = True  # type: ignore[attr-defined]  # Not in the stubs.
        self.rollback.__enter__()
        self.alice: Caller = new_caller("Machine", credit="1")
        self.open: dict[Any, Open] = {}
        self.settled: dict[Any, Decimal] = {}
        # Ended as expired, so that one more settlement counts.
        self.expired: dict[Any, Open] = {}
        self.reservations: dict[Any, Reservation] = {}
        self.paid, self.cap_is = Decimal(1), 0
        self.crash = (NOWHERE, False)
        self.reprice("0.002")

    def teardown(self) -> None:
        if hasattr(self, "rollback"):
            transaction.set_rollback(True)
            self.rollback.__exit__(None, None, None)

    @rule(at=st.integers(0, 9), after=st.booleans())
    def crash_next(self, at: int, after: bool) -> None:
        """Let a process die before or after a statement, in the next event that has as many."""
        self.crash = (at, after)

    def happen(
        self, event: Callable[[], Any], then: Callable[[], None], now: datetime | None = None
    ) -> None:
        """Let an event happen, or crash. The model learns of it if it was committed."""
        commit()
        cut = Cut(*self.crash, CRASH, on_commit=commit)
        try:
            with connection.execute_wrapper(cut), database_time(now or self.now):
                event()
        except Killed:
            if not cut.ends_committed:
                lose_what_is_not_committed()
            connection.set_rollback(False)
        if cut.commits or not cut.fired:
            then()
        if cut.fired:
            self.crash = (NOWHERE, False)
            self.sweep()

    @rule()
    def sweep(self) -> None:
        """Another process finds the worker of all holds dead."""
        self.happen(recovery.settle_abandoned, self._all_are_swept)

    def _all_are_swept(self) -> None:
        self.settled |= {one: left.cost_when_swept for one, left in self.open.items()}
        self.expired |= self.open
        self.open.clear()

    @rule(price=st.sampled_from(["0", "0.000000001", "0.002", "0.05"]))
    def reprice(self, price: str) -> None:
        line = price_book.read_line("llama3", price)
        self.now += timedelta(seconds=1)
        moment = self.now

        def priced() -> None:
            self.rates = line.rates

        self.happen(lambda: price_book.schedule(line, effective_from=moment, now=moment), priced)

    @rule(amount=st.sampled_from(["0.5", "-0.25", "0.000000000001"]).map(Decimal))
    def post(self, amount: Decimal) -> None:
        def paid() -> None:
            self.paid += amount

        kind = Entry.Kind.GRANT
        account = self.alice.account
        self.happen(lambda: ledger.post(account, amount, kind=kind, reason="machine"), paid)

    @rule(minutes=st.integers(1, 50_000))
    def pass_time(self, minutes: int) -> None:
        self.now += timedelta(minutes=minutes)

    @rule(limit=st.integers(0, 50_000))
    def cap(self, limit: int) -> None:
        kind = (self.alice.account, Budget.Unit.TOKENS, Budget.Window.MONTH)
        if not self.caps():
            self.happen(lambda: ledger.open_budget(*kind), lambda: None)
        if found := self.caps():
            cap = found[0]
            self.happen(lambda: ledger.set_limit(cap, limit), lambda: self._cap_is_now(limit))

    def _cap_is_now(self, limit: int) -> None:
        self.cap_is = limit

    def caps(self) -> list[Budget]:
        return list(Budget.objects.filter(account=self.alice.account, window=Budget.Window.MONTH))

    @rule(target=holds, prompt=TOKENS, completion=TOKENS)
    def hold(self, prompt: int, completion: int) -> Any:
        """Ask; return the request's id also where its process died."""
        ids = (self.alice.account.pk, self.alice.key.pk)
        demand = Demand(*ids, Operation.CHAT, "llama3:latest", prompt, prompt // 4, completion)
        request_id, lease = new_request_id(), timedelta(seconds=30)
        price = price_book.effective_price(demand.model, self.now)
        assert price is not None and price.rates == self.rates
        held = Open(price.rates, demand.prompt_estimate)
        try:
            self.happen(
                lambda: ledger.hold(request_id, demand, price, worker=WORKER, lease=lease),
                lambda: self.open.update({request_id: held}),
            )
            self._remember(request_id)
        except Refused:
            return multiple()
        for budget in Budget.objects.filter(account=self.alice.account):
            assert request_id not in self.open or budget.left >= 0, "more was given than there is"
        return request_id

    def _remember(self, request_id: Any) -> None:
        """Keep what a settlement carries, also where the process that held it is gone."""
        for hold in Hold.objects.filter(pk=request_id):
            self.reservations[request_id] = reserved(hold)

    @rule(request_id=holds, produced=TOKENS)
    def renew(self, request_id: Any, produced: int) -> None:
        def noted() -> None:
            if request_id in self.open:
                self.open[request_id].produced = produced

        self.happen(lambda: ledger.renew({request_id: produced}, timedelta()), noted)

    @rule(
        request_id=holds,
        prompt=TOKENS,
        completion=TOKENS,
        outcome=st.sampled_from(list(Outcome)),
        billed=st.booleans(),
        late=st.sampled_from([0, 0, 90]),
    )
    def settle(
        self,
        request_id: Any,
        prompt: int,
        completion: int,
        outcome: Outcome,
        billed: bool,
        late: int,
    ) -> None:
        """Settle in any way, any number of times, out of order; only the first counts, and the
        first that was not too early."""
        reservation = self.reservations.get(request_id)
        if reservation is None:
            return  # Its process died before it was held.
        usage = Usage(prompt, completion, started=True)
        settlement = Settlement(reservation, usage, outcome, billed)
        rows: list[TokenUsage | None] = []
        left = self.open.get(request_id)
        if left is None and outcome is not Outcome.EXPIRED:
            left = self.expired.get(request_id)

        def ended() -> None:
            if left is not None:
                self.settled[request_id] = from_units(settlement.cost)
                self.expired.pop(request_id, None)
                if self.open.pop(request_id, None) and outcome is Outcome.EXPIRED:
                    self.expired[request_id] = left

        def settle() -> None:
            rows.append(ledger.settle(settlement))

        self.happen(settle, ended, now=self.now - timedelta(minutes=late))
        assert all((row is None) == (left is None) for row in rows)

    @invariant()
    def the_books_balance(self) -> None:
        if hasattr(self, "alice"):
            with database_time(self.now):
                found = [d for _check, diffs in reconciliation.differences() for d in diffs]
            assert not found, found

    @invariant()
    def a_request_has_one_row_at_most_and_what_is_written_stays(self) -> None:
        if hasattr(self, "alice"):
            rows: dict[Any, Decimal] = {}
            for row in TokenUsage.objects.all():
                whose = row.adjusts or row.request_id
                rows[whose] = rows.get(whose, Decimal(0)) + row.cost
            assert rows == self.settled
            assert Hold.objects.exclude(state="open").count() == len(rows)
            expired = Hold.objects.filter(state="expired").values_list("pk", flat=True)
            assert set(expired) == self.expired.keys()
            assert {hold.pk for hold in ledger.open_holds()} == self.open.keys()

    @invariant()
    def money_moves_and_limits_change_once_or_not_at_all(self) -> None:
        if hasattr(self, "alice"):
            assert Entry.objects.aggregate(sum=Sum("amount"))["sum"] == self.paid
            assert all(cap.limit == self.cap_is for cap in self.caps())


@pytest.mark.django_db
def test_no_order_of_events_unbalances_the_books() -> None:
    run_state_machine_as_test(
        Ledger,
        settings=settings(
            max_examples=25,
            stateful_step_count=30,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
