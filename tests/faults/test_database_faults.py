"""The database fails in the middle of a statement or a commit, and the journal with it.

Faults are injected here, in this process, on the tests' own database.
"""

import os
from pathlib import Path
from typing import Any

import pytest
from django.db import OperationalError, connection
from django.db.backends.signals import connection_created

from billing import journal, leases, ledger
from billing.journal import LineStatus
from billing.models import Hold, ModelPrice, TokenUsage
from billing.reservations import Settlement
from gateway.metering import CountSource, Outcome, Usage
from tests.fakes.ollama import FakeOllama
from tests.faults.conftest import books_balance
from tests.harness.callers import Caller
from tests.harness.journals import new_settlement, replayed_settlements

sqlite_only = pytest.mark.once  # What SQLite alone does.


@pytest.fixture
def folder(tmp_path: Path, settings: Any) -> Path:
    settings.JOURNAL_DIR = str(tmp_path)
    return tmp_path


@pytest.mark.usefixtures("priced", "ollama", "folder")
@pytest.mark.parametrize("word", ["deadlock detected", "could not serialize access"])
def test_a_transaction_that_conflicts_is_tried_again(
    alice: Caller, monkeypatch: pytest.MonkeyPatch, word: str
) -> None:
    honest, failures = ledger._roll_up, [OperationalError(word), OperationalError(word)]

    def fail_twice(row: TokenUsage) -> None:
        if failures:
            raise failures.pop()
        honest(row)

    monkeypatch.setattr(ledger, "_roll_up", fail_twice)

    answer = alice.post("/generate", model="llama3", prompt="hi").json()

    assert f"{TokenUsage.objects.get().cost:f}" == answer["usage"]["cost"] and not failures
    books_balance()


@pytest.mark.usefixtures("priced", "ollama", "folder")
def test_a_commit_whose_result_was_lost_is_billed_once_and_reported(
    alice: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The connection breaks after the database has committed; the next attempt finds the row."""
    honest, times = ledger.settle, [0]

    def commit_and_fail(*args: Any, **kwargs: Any) -> Any:
        row, times[0] = honest(*args, **kwargs), times[0] + 1
        if times[0] == 1:
            raise OperationalError("server closed the connection unexpectedly")
        return row

    monkeypatch.setattr(ledger, "settle", commit_and_fail)

    answer = alice.post("/generate", model="llama3", prompt="hi").json()

    assert f"{TokenUsage.objects.get().cost:f}" == answer["usage"]["cost"] and times == [2]
    books_balance()


@pytest.mark.usefixtures("priced", "folder")
def test_a_hold_whose_commit_was_not_confirmed_is_released(
    alice: Caller, ollama: FakeOllama, monkeypatch: pytest.MonkeyPatch, settings: Any
) -> None:
    """Nothing renews its lease, so it is released when the lease expires."""
    settings.HOLD_LEASE_SECONDS = 0
    honest = ledger.hold

    def commit_and_fail(*args: Any, **kwargs: Any) -> Any:
        honest(*args, **kwargs)
        raise OperationalError("server closed the connection unexpectedly")

    monkeypatch.setattr(ledger, "hold", commit_and_fail)

    response = alice.post("/generate", model="llama3", prompt="hi")
    assert (response.status_code, response["Retry-After"]) == (503, "2") and not ollama.requests
    leases.LeaseRenewer().tick()

    assert Hold.objects.get().state == "expired" and alice.wallet.held == 0
    assert alice.wallet.spent == 0
    books_balance()


def ending(hold: Hold, prompt: int = 3) -> Settlement:
    from tests.billing.test_ledger import reserved

    usage = Usage(prompt, 4, CountSource.UPSTREAM, started=True)
    return Settlement(reserved(hold), usage, Outcome.COMPLETE, billed=True)


@pytest.mark.usefixtures("folder")
def test_one_settlement_that_the_database_refuses_does_not_block_others(
    alice: Caller, priced: ModelPrice
) -> None:
    from tests.billing.test_ledger import reserve

    bad, good = reserve(alice, priced), reserve(alice, priced)
    journal.write(ending(bad, prompt=-1))
    journal.write(ending(good))

    leases.LeaseRenewer().tick()

    assert TokenUsage.objects.get().request_id == good.request_id


def test_a_replay_that_failed_is_not_overwritten_by_the_next(folder: Path) -> None:
    """The database is back for a moment only, while responses go on ending."""
    first, second = (new_settlement() for _ in range(2))

    def fail(_ending: Settlement) -> LineStatus:
        raise OperationalError

    journal.write(first)
    with pytest.raises(OperationalError):
        journal.replay(fail)
    journal.write(second)
    found = replayed_settlements()

    assert sorted(found, key=str) == sorted([first, second], key=str)


@pytest.mark.usefixtures("db")
def test_half_a_line_after_a_full_disk_spoils_no_other_line(folder: Path, alice: Caller) -> None:
    one = new_settlement()
    journal.write(one)
    [own] = folder.iterdir()
    own.write_text(own.read_text() + '{"request_id": "01')
    journal.write(one)
    found = replayed_settlements()

    assert found == [one, one]


def test_settlements_wait_in_memory_while_no_disk_takes_them(tmp_path: Path, settings: Any) -> None:
    (tmp_path / "file").touch()
    settings.JOURNAL_DIR = str(tmp_path / "file")  # No folder can be made there.
    kept = new_settlement()
    with pytest.raises(OSError):
        journal.write(kept)
    settings.JOURNAL_DIR = str(tmp_path / "folder")

    assert replayed_settlements() == [kept] and replayed_settlements() == []


@sqlite_only
@pytest.mark.usefixtures("priced", "transactional_db", "folder")
def test_a_database_file_that_may_not_grow_is_like_a_full_disk(
    alice: Caller, ollama: FakeOllama
) -> None:
    def stop_growing(connection: Any, **_kwargs: Any) -> None:
        connection.cursor().execute("PRAGMA max_page_count = 1")  # It becomes the size it has.

    connection.cursor().execute("VACUUM")  # Earlier tests left pages empty, room for many rows.
    connection.close()
    connection_created.connect(stop_growing)
    try:
        statuses = {
            alice.post("/generate", model="llama3", prompt="hi").status_code for _ in range(200)
        }
    finally:
        connection_created.disconnect(stop_growing)
        connection.close()
    assert 503 in statuses and statuses <= {200, 503}
    leases.LeaseRenewer().tick()

    assert alice.post("/generate", model="llama3", prompt="hi").status_code == 200
    books_balance()


def test_a_process_that_can_open_no_file_takes_no_other_for_dead(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Otherwise a worker without free files would settle the running responses of its sibling."""
    from billing import processes

    sibling = processes.identity().replace(f"/{os.getpid()}-", "/1-")

    def fail(*_args: Any, **_kwargs: Any) -> str:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(Path, "read_bytes", fail)

    assert not processes.has_exited(sibling)
    assert not processes.has_exited(processes.identity())
