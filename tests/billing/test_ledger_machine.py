"""Any order of top-ups, price changes, holds, settling, expiry and months keeps the books."""

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from django.db import transaction
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from billing import ledger, prices, reconciliation
from billing.models import Budget, Entry, Hold, TokenUsage
from gateway.metering import Demand, Outcome, Refused, Usage
from gateway.request_ids import new_request_id
from tests.conftest import Caller, new_caller

TOKENS = st.integers(0, 10_000)


class Ledger(RuleBasedStateMachine):
    holds = Bundle("holds")

    @initialize()
    def begin(self) -> None:
        self.now = datetime(2026, 11, 30, 23, 0, tzinfo=UTC)
        # Each run is rolled back, as a test is; the ledger then sees no outer transaction.
        self.rollback = transaction.atomic()
        self.rollback._from_testcase = True
        self.rollback.__enter__()
        self.alice: Caller = new_caller("Machine", credit="1")
        self.settled: dict[Any, Decimal] = {}
        self.reprice("0.002")

    def teardown(self) -> None:
        if hasattr(self, "rollback"):
            transaction.set_rollback(True)
            self.rollback.__exit__(None, None, None)

    @rule(price=st.sampled_from(["0", "0.000000001", "0.002", "0.05"]))
    def reprice(self, price: str) -> None:
        line = prices.read_line("llama3", price)
        self.now += timedelta(seconds=1)
        self.price = prices.schedule(line, effective_from=self.now, now=self.now)

    @rule(amount=st.sampled_from(["0.5", "-0.25", "0.000000000001"]))
    def post(self, amount: str) -> None:
        ledger.post(self.alice.account, Decimal(amount), kind=Entry.Kind.GRANT, reason="machine")

    @rule(minutes=st.integers(1, 50_000))
    def pass_time(self, minutes: int) -> None:
        self.now += timedelta(minutes=minutes)

    @rule(limit=st.integers(0, 50_000))
    def cap(self, limit: int) -> None:
        budget = ledger.open_budget(
            self.alice.account, Budget.Unit.TOKENS, Budget.Window.MONTH, now=self.now
        )
        ledger.set_limit(budget, limit)

    @rule(target=holds, prompt=TOKENS, completion=TOKENS)
    def hold(self, prompt: int, completion: int) -> Any:
        demand = Demand(
            self.alice.account.pk,
            self.alice.key.pk,
            "chat",
            "llama3:latest",
            prompt,
            prompt // 4,
            completion,
        )
        request_id, lease = new_request_id(), self.now + timedelta(seconds=30)
        reservation = ledger.Reservation(request_id, demand, self.price, "w", self.now, lease)
        try:
            ledger.hold(reservation)
        except Refused:
            return None
        for budget in Budget.objects.filter(account=self.alice.account):
            assert budget.left >= 0, "more was given than there is"
        return request_id

    @rule(
        request_id=holds,
        prompt=TOKENS,
        completion=TOKENS,
        outcome=st.sampled_from(list(Outcome)),
        billed=st.booleans(),
    )
    def settle(
        self, request_id: Any, prompt: int, completion: int, outcome: Outcome, billed: bool
    ) -> None:
        """Settle in any way, any number of times; only the first counts."""
        if request_id is None:
            return
        usage = Usage(prompt, completion, started=True)
        row = ledger.settle(request_id, usage, outcome=outcome, billed=billed, now=self.now)
        assert (row is None) == (request_id in self.settled)
        if row is not None:
            self.settled[request_id] = row.cost

    @invariant()
    def the_books_balance(self) -> None:
        if hasattr(self, "alice"):
            found = [d for _check, diffs in reconciliation.differences() for d in diffs]
            assert not found, found

    @invariant()
    def a_request_has_one_row_at_most_and_what_is_written_stays(self) -> None:
        if hasattr(self, "alice"):
            rows = dict(TokenUsage.objects.values_list("request_id", "cost"))
            assert rows == self.settled
            assert Hold.objects.exclude(state="open").count() == len(rows)


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
