"""Holds of processes that are gone are settled; those of the living are left alone."""

import os
import subprocess
import sys
import threading
from datetime import timedelta
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from django.core.management import call_command
from django.db import IntegrityError, connection
from django.utils import timezone

from billing import clock, leases, ledger, processes, recovery
from billing.models import Hold, ModelPrice, TokenUsage
from billing.reservations import Settlement
from tests.billing.test_crash_at_any_statement import machine_running_for
from tests.billing.test_ledger import books_balance, finish, reserve
from tests.harness.callers import Caller, database_time


def orphan(alice: Caller, price: ModelPrice, *, produced: int = 0, **fields: Any) -> Hold:
    """Return a hold; by default of a worker of which nobody here knows whether it runs."""
    hold = reserve(alice, price)
    here = {"lease_boot_ms": clock.since_boot() + 30_000} | fields
    Hold.objects.filter(pk=hold.pk).update(progress=produced, **here)
    hold.refresh_from_db()
    return hold


def dead_worker() -> str:
    """Return the name of a process of this machine that has ended."""
    name = "import billing.processes as w; print(w.identity())"
    root = os.path.dirname(os.path.dirname(os.path.dirname(__file__)))
    return subprocess.check_output([sys.executable, "-c", name], cwd=root, text=True).strip()


def test_a_process_of_which_only_its_parent_took_no_note_is_dead() -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        stat = Path(f"/proc/{process.pid}/stat").read_text()
        name = processes.identity().rpartition("/")[0] + f"/{process.pid}-{stat.split()[21]}"

        assert processes.has_exited(name) and not processes.may_be_running(name)


@pytest.mark.parametrize("worker", ["", "elsewhere/1/1-1", "a/b/c/1/2", "host/x/y", "///"])
def test_of_other_machines_nothing_is_known(worker: str) -> None:
    assert not processes.has_exited(worker)


def test_a_lease_that_ran_out_is_settled(alice: Caller, priced: ModelPrice) -> None:
    orphan(alice, priced, lease_until=timezone.now() - timedelta(seconds=1))

    assert recovery.settle_abandoned() == 1

    row = TokenUsage.objects.get()
    assert (row.outcome, row.billed, alice.wallet.held) == ("expired", False, 0)
    assert books_balance()


def test_a_dead_worker_is_not_waited_for(alice: Caller, priced: ModelPrice) -> None:
    orphan(alice, priced, worker=dead_worker(), produced=7)

    assert recovery.settle_abandoned() == 1

    row = TokenUsage.objects.get()
    assert (row.billed, row.completion_tokens, row.count_source) == (True, 7, "estimated")
    assert Hold.objects.get().state == "expired" and books_balance()


def test_a_lease_renewed_meanwhile_is_left_alone(alice: Caller, priced: ModelPrice) -> None:
    orphan(alice, priced, lease_until=timezone.now() - timedelta(seconds=1))
    [found] = recovery.abandoned_holds()
    ledger.renew({found.request_id: 3}, timedelta(seconds=30))

    assert not recovery._settle(found)
    assert Hold.objects.get().state == "open"


def test_a_keeper_that_just_started_believes_no_lease(
    alice: Caller, priced: ModelPrice, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their workers may have been unable to renew them until now; of the dead it is sure."""
    monkeypatch.setattr(threading, "Thread", Mock())
    orphan(alice, priced, lease_until=timezone.now() - timedelta(seconds=1))
    dead = orphan(alice, priced, worker=dead_worker())
    fresh = leases.LeaseRenewer()
    fresh.start()

    fresh.tick()

    assert TokenUsage.objects.get().request_id == dead.request_id


# --- Clocks ---------------------------------------------------------------------------------------

HERE = processes.identity().rpartition("/")[0]
# The parent of this process: it runs, whatever a lease says.
SIBLING = f"{HERE}/{os.getppid()}-{processes._started(os.getppid())}"
CONTAINER = HERE.rpartition("/")[0] + "/another-namespace/7-7"


@pytest.mark.parametrize("hours", [-2, 2])
@pytest.mark.parametrize("worker", [CONTAINER, SIBLING])
def test_a_wall_clock_that_steps_ends_no_lease_of_this_machine(
    alice: Caller, priced: ModelPrice, worker: str, hours: int
) -> None:
    """The database runs on this machine, and its clock steps, too."""
    hold = orphan(alice, priced, worker=worker)

    with database_time(hold.opened_at + timedelta(hours=hours)):
        assert recovery.settle_abandoned() == 0
        with machine_running_for(timedelta(hours=2)):
            assert recovery.settle_abandoned() == 1


def test_a_lease_of_another_machine_runs_by_the_clock_of_the_database(
    alice: Caller, priced: ModelPrice
) -> None:
    hold = orphan(alice, priced)
    with machine_running_for(timedelta(days=1)), database_time(hold.opened_at):
        assert recovery.settle_abandoned() == 0
    with database_time(hold.lease_until - timedelta(seconds=1)):
        assert recovery.settle_abandoned() == 0
    with database_time(hold.lease_until + timedelta(seconds=1)):
        assert recovery.settle_abandoned() == 1


def test_our_own_clock_decides_nothing(
    alice: Caller, priced: ModelPrice, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A gateway host whose clock is two hours ahead, on a database that is elsewhere."""
    if connection.vendor == "sqlite":
        pytest.skip("SQLite's clock is ours")
    wrong = timezone.now() + timedelta(hours=2)
    monkeypatch.setattr(timezone, "now", lambda: wrong)
    hold = orphan(alice, priced)

    assert recovery.settle_abandoned() == 0
    assert hold.opened_at < wrong - timedelta(hours=1)
    row = finish(hold)
    assert hold.opened_at <= row.settled_at < wrong - timedelta(hours=1)


def test_a_process_that_runs_does_not_keep_a_hold_for_ever(
    alice: Caller, priced: ModelPrice
) -> None:
    """It may not know of it: the commit was done, and only its answer was lost."""
    orphan(alice, priced, worker=SIBLING)

    with machine_running_for(timedelta(minutes=60)):
        assert recovery.settle_abandoned() == 0
    with machine_running_for(timedelta(minutes=61)):
        assert recovery.settle_abandoned() == 1


def test_what_this_process_serves_it_never_settles(alice: Caller, priced: ModelPrice) -> None:
    """All processes of this machine were stopped after the renewal, and go on."""
    hold = orphan(alice, priced, worker=processes.identity())

    with machine_running_for(timedelta(hours=2)):
        assert recovery.settle_abandoned(served={hold.request_id}) == 0
        assert recovery.settle_abandoned() == 1


def test_a_hold_that_is_served_is_left_alone(alice: Caller, priced: ModelPrice) -> None:
    orphan(alice, priced, worker=processes.identity())

    assert recovery.settle_abandoned() == 0
    assert Hold.objects.get().state == "open"


def test_one_that_cannot_be_settled_does_not_keep_the_others(
    alice: Caller, priced: ModelPrice, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad, _good = (orphan(alice, priced, worker=dead_worker()) for _ in range(2))
    honest = ledger.settle

    def settle(settlement: Settlement, **kwargs: Any) -> Any:
        if settlement.request_id == bad.request_id:
            raise IntegrityError
        return honest(settlement, **kwargs)

    monkeypatch.setattr(ledger, "settle", settle)

    assert recovery.settle_abandoned() == 1


def test_a_tick_renews_what_is_kept_and_notes_what_was_produced(
    alice: Caller, priced: ModelPrice
) -> None:
    class Answer:
        produced = 42

    hold = orphan(alice, priced, lease_until=timezone.now() - timedelta(seconds=1))
    keeping = leases.LeaseRenewer()
    keeping.add(hold.request_id, Answer())

    keeping.tick()

    renewed = Hold.objects.get()
    assert renewed.state == "open" and renewed.progress == 42
    assert renewed.lease_until > timezone.now()


def test_the_command_says_what_it_did(
    alice: Caller, priced: ModelPrice, capsys: pytest.CaptureFixture[str]
) -> None:
    orphan(alice, priced, worker=dead_worker())
    reserve(alice, priced)

    call_command("settle_holds")

    assert "1 orphaned holds settled; 1 are open" in capsys.readouterr().out
