"""Whatever writes money is cut at each of its statements; then the books are compared.

Each act runs again and again, cut at another place each time: between any two statements, before a
COMMIT, and after one whose answer is lost. What then happens is what really happens: another
process sweeps after the dead one, or the living one tries again.
"""

import contextlib
import dataclasses
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any, NoReturn
from uuid import UUID

import pytest
from django.db import OperationalError, connection
from django.db.models import Q
from django.utils import timezone

from accounts import keys
from accounts.models import Account
from billing import clock, journal, leases, ledger, price_book, processes, reconciliation, recovery
from billing.meter import LedgerMeter
from billing.models import Budget, Entry, Hold, ModelPrice, TokenUsage
from billing.reservations import Settlement
from gateway.http.request_ids import new_request_id
from gateway.metering import CapReached, CountSource, Demand, Operation, Outcome, Usage
from tests.billing.test_ledger import finish, reserve
from tests.harness.callers import Caller, new_caller, set_price

pytestmark = pytest.mark.django_db(transaction=True)

# No process has this number, on any machine: it is past the highest there can be.
DEAD = "4194305-1"
COMMIT = "COMMIT"
NOWHERE = -1
COUNTED = Usage(10, 5, CountSource.UPSTREAM, started=True)
COST = Decimal("0.00004")
# What is produced when a lease is renewed, and what an orphan then costs: 25 read, 7 written.
PRODUCED, ORPHANS_COST = 7, Decimal("0.000078")


# --- How a run ends too early --------------------------------------------------------------------


class Killed(BaseException):
    """The process is gone. No `except Exception` survives that."""


class NobodyThoughtOfThis(Exception):
    """What no code knows as an error of the database."""


@dataclass(frozen=True)
class Failure:
    """How a run is cut, and whether whatever it tries next fails, too."""

    name: str
    strike: Callable[[], NoReturn]
    lasts: bool


def kill() -> NoReturn:
    connection.connection.rollback()
    raise Killed


def drop() -> NoReturn:
    """PostgreSQL closes the connection, and Django does not know it yet; SQLite has none to lose,
    its disk fails."""
    connection.connection.rollback()
    if connection.vendor == "postgresql":
        connection.connection.close()
    raise OperationalError("server closed the connection unexpectedly, or disk I/O error")


def be_away() -> NoReturn:
    connection.connection.rollback()
    raise OperationalError("the database system is shutting down")


def break_down() -> NoReturn:
    connection.connection.rollback()
    raise NobodyThoughtOfThis


KILLED = Failure("killed", kill, lasts=True)
DROPPED = Failure("dropped", drop, lasts=False)
AWAY = Failure("away", be_away, lasts=True)
BROKEN = Failure("bug", break_down, lasts=False)


@dataclass
class Cut:
    """Stands between the code and the database, and ends the run at one statement or COMMIT."""

    at: int
    after: bool
    failure: Failure
    on_commit: Callable[[], object] = lambda: None
    fired: bool = False
    seen: list[str] = field(default_factory=list)
    committed: list[int] = field(default_factory=list)
    base: int = field(default_factory=lambda: len(connection.atomic_blocks))

    def __call__(self, execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
        return self.meet(sql, lambda: execute(sql, params, many, context))

    def meet(self, what: str, do: Callable[[], Any]) -> Any:
        if self.fired and self.failure.lasts:
            self.failure.strike()
        if self.ends_committed:
            self.on_commit()
        self.seen.append(what)
        here = len(self.seen) - 1 == self.at
        if here and not self.after:
            self._fire()
        done = do()
        if self._is_commit(what):
            self.committed.append(len(self.seen) - 1)
        if here:
            self._fire()
        return done

    @property
    def ends_committed(self) -> bool:
        """Tell whether nothing ran since the last commit."""
        return self.committed[-1:] == [len(self.seen) - 1]

    @property
    def commits(self) -> int:
        return len(self.committed)

    def places(self) -> list[tuple[int, bool]]:
        """Return where a run like this one can be cut: before each statement, and after those that
        commit. After any other is before the next: it leaves nothing behind."""
        before = [(at, False) for at in range(len(self.seen))]
        return before + [(at, True) for at in self.committed]

    def _fire(self) -> NoReturn:
        self.fired = True
        self.failure.strike()

    def _is_commit(self, what: str) -> bool:
        """A COMMIT is one; where all runs in a test's transaction, the end of a savepoint that was
        not rolled back; and what is written outside of any transaction."""
        if len(connection.atomic_blocks) > self.base:
            return False
        undone = len(self.seen) > 1 and self.seen[-2].startswith("ROLLBACK")
        ends = what == COMMIT or (what.startswith("RELEASE") and not undone)
        return ends or what.lstrip().startswith(("INSERT", "UPDATE"))


@contextlib.contextmanager
def cutting(cut: Cut) -> Iterator[None]:
    """Let what runs inside be cut; what it raises then is the end of it."""
    commit = connection._commit  # type: ignore[attr-defined]  # The stubs leave it out.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(connection, "_commit", lambda: cut.meet(COMMIT, commit))
        try:
            with connection.execute_wrapper(cut):
                yield
        except (Killed, OperationalError, NobodyThoughtOfThis):
            assert cut.fired
        finally:
            if cut.failure is DROPPED:
                connection.close()


@contextlib.contextmanager
def in_a_process_that_dies() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(processes, "local_identity", lambda: DEAD)
        yield


@contextlib.contextmanager
def machine_running_for(longer: timedelta) -> Iterator[None]:
    """By the clock that nobody can set, so much later than now."""
    later = clock.since_boot() + longer // timedelta(milliseconds=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(clock, "since_boot", lambda: later)
        yield


# --- What is cut, and what must be true then -----------------------------------------------------


@dataclass(frozen=True)
class Act:
    """What may be cut, and what must be true when all has been tidied up."""

    run: Callable[[], object]
    holds_true: Callable[[Cut], bool]


Scene = Callable[[Caller], Act]


def demand_of(caller: Caller, completion: int = 100) -> Demand:
    ids = (caller.account.pk, caller.key.pk)
    return Demand(*ids, Operation.CHAT, "llama3:latest", 100, 25, completion)


def rows_of(request_id: UUID) -> list[tuple[str, Decimal]]:
    rows = TokenUsage.objects.filter(request_id=request_id)
    return list(rows.values_list("outcome", "cost"))


def answers_a_request(caller: Caller) -> Act:
    meter, opened, told = LedgerMeter(new_request_id()), [], []

    def run() -> None:
        meter.open(demand_of(caller))
        opened.append(True)
        with contextlib.suppress(OperationalError, NobodyThoughtOfThis):
            # The lease thread does this, and goes on.
            ledger.renew({meter.request_id: PRODUCED}, timedelta(minutes=1))
        told.append(meter.close(COUNTED, Outcome.COMPLETE))

    def ended(cut: Cut) -> list[tuple[str, Decimal]]:
        if told:
            return [("complete", COST)]
        after_each = [("expired", Decimal(0)), ("expired", ORPHANS_COST), ("complete", COST)]
        return [after_each[cut.commits - 1]] if cut.commits else []

    def holds_true(cut: Cut) -> bool:
        if cut.failure is not KILLED and not opened:
            # The process lives, but nobody keeps the lease of what it could not see being opened.
            with machine_running_for(recovery.GRACE):
                recovery.settle_abandoned()
        assert all(receipt and receipt.cost == COST for receipt in told), cut
        return rows_of(meter.request_id) == ended(cut)

    return Act(run, holds_true)


def discards_a_hold(caller: Caller) -> Act:
    """Nothing of it stays; where it cannot be deleted, it ends with a row that costs nothing."""
    meter = LedgerMeter(new_request_id())
    meter.open(demand_of(caller))

    def holds_true(cut: Cut) -> bool:
        rows = rows_of(meter.request_id)
        nothing: list[tuple[str, Decimal]] = []
        unbilled = [("gateway_failed", Decimal(0))]
        possible = [nothing, unbilled]
        if cut.failure is KILLED:
            possible = [nothing] if cut.commits else [[("expired", Decimal(0))]]
        held = Hold.objects.filter(pk=meter.request_id).exists()
        return rows in possible and held == bool(rows)

    return Act(meter.abandon, holds_true)


def refuses_a_request(caller: Caller) -> Act:
    """The wallet has it and the cap has not: what was taken is given back."""
    meter = LedgerMeter(new_request_id())

    def run() -> None:
        with contextlib.suppress(CapReached):
            meter.open(demand_of(caller, completion=2_000_000))

    return Act(run, lambda _cut: not Hold.objects.filter(pk=meter.request_id).exists())


def sweeps_orphans(caller: Caller) -> Act:
    meters = [LedgerMeter(new_request_id()) for _ in range(2)]
    with in_a_process_that_dies():
        for meter in meters:
            meter.open(demand_of(caller))
    ledger.renew({meter.request_id: PRODUCED for meter in meters}, timedelta())

    def holds_true(_cut: Cut) -> bool:
        return all(rows_of(one.request_id) == [("expired", ORPHANS_COST)] for one in meters)

    return Act(leases.LeaseRenewer().tick, holds_true)


def replays_a_journal(caller: Caller) -> Act:
    ids = [new_request_id() for _ in range(2)]
    with in_a_process_that_dies():
        for request_id in ids:
            meter = LedgerMeter(request_id)
            meter.open(demand_of(caller))
            assert meter._reservation
            journal.write(Settlement(meter._reservation, COUNTED, Outcome.COMPLETE, billed=True))
    journal.close_own_file()  # As the kernel does for a process that is gone.

    def holds_true(_cut: Cut) -> bool:
        return all(rows_of(one) == [("complete", COST)] for one in ids)

    return Act(leases.LeaseRenewer().tick, holds_true)


def settles_what_was_expired_too_early(caller: Caller) -> Act:
    """Somebody thought its process gone; the answer went on and was seen to its end."""
    meter, told = LedgerMeter(new_request_id()), []
    meter.open(demand_of(caller))
    ledger.renew({meter.request_id: PRODUCED}, timedelta())
    recovery.settle_abandoned()

    def run() -> None:
        told.append(meter.close(COUNTED, Outcome.COMPLETE))

    def holds_true(cut: Cut) -> bool:
        first, *more = TokenUsage.objects.filter(
            Q(request_id=meter.request_id) | Q(adjusts=meter.request_id)
        ).order_by("pk")
        assert all(receipt and receipt.cost == COST for receipt in told), cut
        assert first.cost == ORPHANS_COST and len(more) == (1 if told else cut.commits), cut
        return not more or first.cost + more[0].cost == COST

    return Act(run, holds_true)


def settles_what_the_database_lost(caller: Caller) -> Act:
    """Its hold is not there: an older backup was restored, or the power went."""
    meter = LedgerMeter(new_request_id())
    meter.open(demand_of(caller))
    assert meter._reservation
    lost = dataclasses.replace(meter._reservation, request_id=new_request_id())
    meter.abandon()
    settlement = Settlement(lost, COUNTED, Outcome.COMPLETE, billed=True)

    def holds_true(cut: Cut) -> bool:
        found = rows_of(lost.request_id)
        if not found:
            ledger.settle(settlement)  # As the journal does that it came from.
        assert len(found) == cut.commits
        return rows_of(lost.request_id) == [("complete", COST)]

    return Act(lambda: ledger.settle(settlement), holds_true)


def posts_money(caller: Caller) -> Act:
    return _a_posting(caller.account)


def posts_the_first_money(_caller: Caller) -> Act:
    return _a_posting(Account.objects.create(name=f"New {new_request_id()}"))


def _a_posting(account: Account) -> Act:
    reason = str(new_request_id())

    def run() -> None:
        ledger.post(account, Decimal(3), kind=Entry.Kind.GRANT, reason=reason)

    def holds_true(cut: Cut) -> bool:
        found = Entry.objects.filter(reason=reason).count()
        if not found:
            run()  # Whoever saw it fail looks, and does it again.
        return found == bool(cut.commits) and Entry.objects.filter(reason=reason).count() == 1

    return Act(run, holds_true)


def opens_a_cap(caller: Caller) -> Act:
    """For a key that has been used: what is spent already counts."""
    key, secret = keys.issue(caller.account, name="Another")
    finish(reserve(Caller(key, secret), ModelPrice.objects.get()))

    def run() -> Budget:
        kind = (Budget.Unit.TOKENS, Budget.Window.MONTH)
        return ledger.open_budget(caller.account, *kind, key=key)

    def holds_true(cut: Cut) -> bool:
        found = Budget.objects.filter(key=key).count()
        return found == cut.commits and run().periods.get().spent == COUNTED.total_tokens

    return Act(run, holds_true)


def changes_a_cap(caller: Caller) -> Act:
    cap = Budget.objects.get(account=caller.account, unit=Budget.Unit.TOKENS)

    def holds_true(cut: Cut) -> bool:
        return Budget.objects.get(pk=cap.pk).limit == cap.limit + cut.commits

    return Act(lambda: ledger.set_limit(cap, cap.limit + 1), holds_true)


def changes_a_price(caller: Caller) -> Act:
    """What is held meanwhile is paid at the price it was asked at."""
    versions, now = ModelPrice.objects.filter(model="llama3:latest"), timezone.now()
    held = reserve(caller, versions.get(prompt_price=2_000_000))
    before, line = versions.count(), price_book.read_line("llama3", "0.5")

    def holds_true(cut: Cut) -> bool:
        return versions.count() == before + cut.commits and finish(held).cost == COST

    return Act(lambda: price_book.schedule(line, effective_from=now, now=now), holds_true)


# Where the code itself tries again, and writes down what it cannot settle, each failure counts.
TRIED_AGAIN: list[Scene] = [
    answers_a_request,
    discards_a_hold,
    settles_what_was_expired_too_early,
]
# Elsewhere it fails at once, whatever it was.
KEEPS: list[Scene] = [
    refuses_a_request,
    sweeps_orphans,
    replays_a_journal,
    settles_what_the_database_lost,
]
POSTS: list[Scene] = [posts_money, posts_the_first_money]
CHANGES: list[Scene] = [opens_a_cap, changes_a_cap, changes_a_price]
CUTS: list[tuple[Scene, Failure]] = [
    *itertools.product(TRIED_AGAIN, [KILLED, DROPPED, AWAY, BROKEN]),
    *itertools.product(KEEPS + POSTS + CHANGES, [KILLED, DROPPED]),
]


# --- The tests ------------------------------------------------------------------------------------


@pytest.fixture
def caller(tmp_path: Path, settings: Any) -> Caller:
    """Somebody with credit, and a monthly cap that is seldom in the way."""
    journal.close_own_file()
    settings.JOURNAL_DIR = str(tmp_path)
    caller = new_caller("Alice")
    kind = (Budget.Unit.TOKENS, Budget.Window.MONTH)
    ledger.set_limit(ledger.open_budget(caller.account, *kind), 1_000_000)
    set_price("llama3", "0.002", "0.004")
    return caller


def name_of(what: Any) -> str:
    return what.name if isinstance(what, Failure) else what.__name__


def cut_everywhere(scene: Scene, caller: Caller, failure: Failure) -> None:
    """Let an act run whole, and then once for each place where it can be cut."""
    whole = perform(scene, caller, Cut(NOWHERE, False, failure))
    for at, after in whole.places():
        assert perform(scene, caller, Cut(at, after, failure)).fired


def perform(scene: Scene, caller: Caller, cut: Cut) -> Cut:
    """Let an act run and be cut, tidy up as the next process does, and compare."""
    with in_a_process_that_dies() if cut.failure is KILLED else contextlib.nullcontext():
        act = scene(caller)
        with cutting(cut):
            act.run()
    leases.LeaseRenewer().tick()
    assert act.holds_true(cut), cut
    assert not ledger.open_holds().exists(), cut
    assert not [found for _check, found in reconciliation.differences() if found], cut
    return cut


@pytest.mark.parametrize(("scene", "failure"), CUTS, ids=name_of)
def test_the_books_balance_wherever_it_is_cut(
    scene: Scene, failure: Failure, caller: Caller
) -> None:
    cut_everywhere(scene, caller, failure)
