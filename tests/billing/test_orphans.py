"""Holds of processes that are gone are settled; those of the living are left alone."""

import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any
from unittest.mock import Mock
from uuid import UUID

import pytest
from django.core.management import call_command
from django.utils import timezone

from billing import keeper, ledger, orphans, workers
from billing.models import Hold, ModelPrice, TokenUsage
from tests.billing.test_ledger import books_balance, reserve
from tests.conftest import Caller


def orphan(alice: Caller, price: ModelPrice, *, produced: int = 0, **fields: Any) -> Hold:
    hold = reserve(alice, price)
    Hold.objects.filter(pk=hold.pk).update(progress=produced, **fields)
    return hold


def dead_worker() -> str:
    """Return the name of a process of this machine that has ended."""
    name = "import billing.workers as w; print(w.identity())"
    root = os.path.dirname(os.path.dirname(os.path.dirname(__file__)))
    return subprocess.check_output([sys.executable, "-c", name], cwd=root, text=True).strip()


def test_this_process_is_not_dead_and_one_that_ended_is() -> None:
    assert not workers.is_known_dead(workers.identity())
    assert workers.is_known_dead(dead_worker())


def test_a_process_of_which_only_its_parent_took_no_note_is_dead() -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        stat = Path(f"/proc/{process.pid}/stat").read_text()
        name = workers.identity().rpartition("/")[0] + f"/{process.pid}-{stat.split()[21]}"

        assert workers.is_known_dead(name) and not workers.may_still_run(name)


@pytest.mark.parametrize("worker", ["", "elsewhere/1/1", "a/b/c/1/2", "host/x/y", "///"])
def test_of_other_machines_nothing_is_known(worker: str) -> None:
    assert not workers.is_known_dead(worker)


def test_a_lease_that_ran_out_is_settled(alice: Caller, priced: ModelPrice) -> None:
    orphan(alice, priced, lease_until=timezone.now() - timedelta(seconds=1))

    assert orphans.settle_all(timezone.now()) == 1

    row = TokenUsage.objects.get()
    assert (row.outcome, row.billed, alice.wallet.held) == ("expired", False, 0)
    assert books_balance()


def test_a_dead_worker_is_not_waited_for(alice: Caller, priced: ModelPrice) -> None:
    orphan(alice, priced, worker=dead_worker(), produced=7)

    assert orphans.settle_all(timezone.now()) == 1

    row = TokenUsage.objects.get()
    assert (row.billed, row.completion_tokens, row.count_source) == (True, 7, "estimated")
    assert Hold.objects.get().state == "expired" and books_balance()


def test_a_lease_renewed_meanwhile_is_left_alone(alice: Caller, priced: ModelPrice) -> None:
    orphan(alice, priced, lease_until=timezone.now() - timedelta(seconds=1))
    [found] = orphans.find(timezone.now())
    ledger.renew({found.request_id: 3}, timezone.now() + timedelta(seconds=30))

    assert not orphans._settle(found, timezone.now())
    assert Hold.objects.get().state == "open"


def test_a_keeper_that_just_started_believes_no_lease(
    alice: Caller, priced: ModelPrice, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their workers may have been unable to renew them until now; of the dead it is sure."""
    monkeypatch.setattr(keeper.threading, "Thread", Mock())
    orphan(alice, priced, lease_until=timezone.now() - timedelta(seconds=1))
    dead = orphan(alice, priced, worker=dead_worker())
    fresh = keeper.Keeper()
    fresh.start()

    fresh.tick()

    assert TokenUsage.objects.get().request_id == dead.request_id


def test_a_hold_that_is_served_is_left_alone(alice: Caller, priced: ModelPrice) -> None:
    orphan(alice, priced, worker=workers.identity())

    assert orphans.settle_all(timezone.now()) == 0
    assert Hold.objects.get().state == "open"


def test_one_that_cannot_be_settled_does_not_keep_the_others(
    alice: Caller, priced: ModelPrice, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad, _good = (orphan(alice, priced, worker=dead_worker()) for _ in range(2))
    honest = ledger.settle

    def settle(request_id: UUID, *args: Any, **kwargs: Any) -> Any:
        if request_id == bad.request_id:
            from django.db import IntegrityError

            raise IntegrityError
        return honest(request_id, *args, **kwargs)

    monkeypatch.setattr(ledger, "settle", settle)

    assert orphans.settle_all(timezone.now()) == 1


def test_a_tick_renews_what_is_kept_and_notes_what_was_produced(
    alice: Caller, priced: ModelPrice
) -> None:
    class Answer:
        produced = 42

    hold = orphan(alice, priced, lease_until=timezone.now() - timedelta(seconds=1))
    keeping = keeper.Keeper()
    keeping.keep(hold.request_id, Answer())

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
