"""Recovery settles abandoned holds and leaves the holds of running processes alone."""

import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

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


def open_hold(alice: Caller, price: ModelPrice, *, produced: int = 0, **fields: Any) -> Hold:
    """Return a hold, by default of a worker of another machine."""
    hold = reserve(alice, price)
    changed = {"lease_boot_ms": clock.since_boot() + 30_000} | fields
    Hold.objects.filter(pk=hold.pk).update(progress=produced, **changed)
    hold.refresh_from_db()
    return hold


def exited_worker() -> str:
    """Return the name of a process of this machine that has exited."""
    name = "import billing.processes as p; print(p.identity())"
    root = os.path.dirname(os.path.dirname(os.path.dirname(__file__)))
    return subprocess.check_output([sys.executable, "-c", name], cwd=root, text=True).strip()


def test_a_process_that_its_parent_has_not_waited_for_has_exited() -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        stat = Path(f"/proc/{process.pid}/stat").read_text()
        name = processes.identity().rpartition("/")[0] + f"/{process.pid}-{stat.split()[21]}"

        assert processes.has_exited(name) and not processes.may_be_running(name)


@pytest.mark.parametrize("worker", ["", "elsewhere/1/1-1", "a/b/c/1/2", "host/x/y", "///"])
def test_a_worker_of_another_machine_is_never_known_to_have_exited(worker: str) -> None:
    assert not processes.has_exited(worker)


def test_a_hold_with_an_expired_lease_is_settled(alice: Caller, priced: ModelPrice) -> None:
    open_hold(alice, priced, lease_until=timezone.now() - timedelta(seconds=1))

    assert recovery.settle_abandoned() == 1

    row = TokenUsage.objects.get()
    assert (row.outcome, row.billed, alice.wallet.held) == ("expired", False, 0)
    assert books_balance()


def test_a_hold_of_an_exited_worker_is_settled_before_its_lease_expires(
    alice: Caller, priced: ModelPrice
) -> None:
    open_hold(alice, priced, worker=exited_worker(), produced=7)

    assert recovery.settle_abandoned() == 1

    row = TokenUsage.objects.get()
    assert (row.billed, row.completion_tokens, row.count_source) == (True, 7, "estimated")
    assert Hold.objects.get().state == "expired" and books_balance()


def test_a_hold_whose_lease_was_renewed_meanwhile_is_not_settled(
    alice: Caller, priced: ModelPrice
) -> None:
    open_hold(alice, priced, lease_until=timezone.now() - timedelta(seconds=1))
    [abandoned] = recovery.abandoned_holds()
    ledger.renew({abandoned.request_id: 3}, timedelta(seconds=30))

    assert not recovery._settle(abandoned)
    assert Hold.objects.get().state == "open"


def test_a_process_that_has_just_started_settles_no_expired_lease(
    alice: Caller, priced: ModelPrice
) -> None:
    """Other workers may have been unable to renew their leases until now."""
    open_hold(alice, priced, lease_until=timezone.now() - timedelta(seconds=1))
    certain = open_hold(alice, priced, worker=exited_worker())
    renewer = leases.LeaseRenewer(trusts_leases=False)

    renewer.tick()

    assert TokenUsage.objects.get().request_id == certain.request_id


# --- Clocks ---------------------------------------------------------------------------------------

NAMESPACE = processes.identity().rpartition("/")[0]
# The parent of this process, which is running.
SIBLING = f"{NAMESPACE}/{os.getppid()}-{processes._started(os.getppid())}"
CONTAINER = NAMESPACE.rpartition("/")[0] + "/another-namespace/7-7"


@pytest.mark.parametrize("hours", [-2, 2])
@pytest.mark.parametrize("worker", [CONTAINER, SIBLING])
def test_a_change_of_the_wall_clock_expires_no_lease_of_this_machine(
    alice: Caller, priced: ModelPrice, worker: str, hours: int
) -> None:
    """The database runs on this machine, so its clock changes too."""
    hold = open_hold(alice, priced, worker=worker)

    with database_time(hold.opened_at + timedelta(hours=hours)):
        assert recovery.settle_abandoned() == 0
        with machine_running_for(timedelta(hours=2)):
            assert recovery.settle_abandoned() == 1


def test_a_lease_of_another_machine_expires_by_the_clock_of_the_database(
    alice: Caller, priced: ModelPrice
) -> None:
    hold = open_hold(alice, priced)
    with machine_running_for(timedelta(days=1)), database_time(hold.opened_at):
        assert recovery.settle_abandoned() == 0
    with database_time(hold.lease_until - timedelta(seconds=1)):
        assert recovery.settle_abandoned() == 0
    with database_time(hold.lease_until + timedelta(seconds=1)):
        assert recovery.settle_abandoned() == 1


def test_the_wall_clock_of_the_gateway_host_is_not_used(
    alice: Caller, priced: ModelPrice, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The clock of the gateway host is two hours ahead of the database's."""
    if connection.vendor == "sqlite":
        pytest.skip("SQLite uses the clock of this process")
    wrong = timezone.now() + timedelta(hours=2)
    monkeypatch.setattr(timezone, "now", lambda: wrong)
    hold = open_hold(alice, priced)

    assert recovery.settle_abandoned() == 0
    assert hold.opened_at < wrong - timedelta(hours=1)
    row = finish(hold)
    assert hold.opened_at <= row.settled_at < wrong - timedelta(hours=1)


def test_a_hold_of_a_running_process_is_settled_an_hour_after_its_lease_expires(
    alice: Caller, priced: ModelPrice
) -> None:
    """The process may not know of it: the commit succeeded, but was never confirmed."""
    open_hold(alice, priced, worker=SIBLING)

    with machine_running_for(timedelta(minutes=60)):
        assert recovery.settle_abandoned() == 0
    with machine_running_for(timedelta(minutes=61)):
        assert recovery.settle_abandoned() == 1


def test_a_process_never_settles_the_holds_it_serves(alice: Caller, priced: ModelPrice) -> None:
    """All processes of this machine were suspended after the renewal, and resume."""
    hold = open_hold(alice, priced, worker=processes.identity())

    with machine_running_for(timedelta(hours=2)):
        assert recovery.settle_abandoned(served={hold.request_id}) == 0
        assert recovery.settle_abandoned() == 1


def test_a_hold_with_a_valid_lease_is_not_settled(alice: Caller, priced: ModelPrice) -> None:
    open_hold(alice, priced, worker=processes.identity())

    assert recovery.settle_abandoned() == 0
    assert Hold.objects.get().state == "open"


def test_a_hold_that_cannot_be_settled_does_not_stop_the_others(
    alice: Caller, priced: ModelPrice, monkeypatch: pytest.MonkeyPatch
) -> None:
    invalid, _valid = (open_hold(alice, priced, worker=exited_worker()) for _ in range(2))
    original = ledger.settle

    def settle(settlement: Settlement, **kwargs: Any) -> Any:
        if settlement.request_id == invalid.request_id:
            raise IntegrityError
        return original(settlement, **kwargs)

    monkeypatch.setattr(ledger, "settle", settle)

    assert recovery.settle_abandoned() == 1


def test_a_tick_renews_leases_and_records_progress(alice: Caller, priced: ModelPrice) -> None:
    class Request:
        produced = 42

    hold = open_hold(alice, priced, lease_until=timezone.now() - timedelta(seconds=1))
    renewer = leases.LeaseRenewer()
    renewer.add(hold.request_id, Request())

    renewer.tick()

    renewed = Hold.objects.get()
    assert renewed.state == "open" and renewed.progress == 42
    assert renewed.lease_until > timezone.now()


def test_settle_holds_reports_how_many_holds_it_settled(
    alice: Caller, priced: ModelPrice, capsys: pytest.CaptureFixture[str]
) -> None:
    open_hold(alice, priced, worker=exited_worker())
    reserve(alice, priced)

    call_command("settle_holds")

    assert "1 abandoned holds settled; 1 are open" in capsys.readouterr().out
