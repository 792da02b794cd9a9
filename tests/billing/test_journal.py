"""The journal writes settlements to files and replays each line exactly once."""

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from django.db import OperationalError

from billing import journal, leases, ledger, processes, recovery
from billing.journal import LineStatus
from billing.meter import LedgerMeter
from billing.models import Hold, ModelPrice, TokenUsage
from billing.reservations import Settlement, to_line
from gateway.http.request_ids import new_request_id
from gateway.metering import CountSource, Demand, Operation, Outcome, Usage
from tests.billing.test_ledger import books_balance, reserve, reserved
from tests.fakes.ollama import FakeOllama
from tests.harness.callers import Caller, database_time
from tests.harness.journals import (
    lines_replayed,
    new_settlement,
    replayed_settlements,
    settle_nothing,
)

# --- Files ----------------------------------------------------------------------------------------


def test_a_replay_reads_what_was_written_and_removes_the_file(journal_directory: Path) -> None:
    written = [new_settlement() for _ in range(3)]
    for settlement in written:
        journal.write(settlement)

    assert replayed_settlements() == written and not list(journal_directory.iterdir())


@pytest.mark.usefixtures("journal_directory")
def test_a_replay_that_fails_is_repeated() -> None:
    journal.write(new_settlement())

    with pytest.raises(OperationalError):
        journal.replay(Mock(side_effect=OperationalError))

    assert lines_replayed() == 1


WRITER = """
import sys
from django.conf import settings
settings.configure(JOURNAL_DIR=sys.argv[1])
from billing import journal, reservations
journal.write(reservations.from_line(sys.argv[2]))
print("written", flush=True)
sys.stdin.read()
"""


@contextlib.contextmanager
def writer(directory: Path, settlement: Settlement) -> Iterator[subprocess.Popen[str]]:
    """Start another process that writes a settlement and runs until its input is closed."""
    arguments = [sys.executable, "-c", WRITER, str(directory), to_line(settlement)]
    pipe = subprocess.PIPE
    with subprocess.Popen(arguments, stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdout and process.stdout.readline() == "written\n"
        yield process


def test_a_file_of_another_process_is_replayed_once_that_process_has_exited(
    journal_directory: Path,
) -> None:
    with writer(journal_directory, new_settlement()) as process:
        assert lines_replayed() == 0
        process.kill()

    assert lines_replayed() == 1 and not list(journal_directory.iterdir())


@pytest.mark.usefixtures("journal_directory")
def test_lines_written_after_a_failed_replay_are_kept_too() -> None:
    written = [new_settlement(), new_settlement()]
    journal.write(written[0])
    with pytest.raises(OperationalError):
        journal.replay(Mock(side_effect=OperationalError))
    journal.write(written[1])

    read = {settlement.request_id for settlement in replayed_settlements()}
    assert read == {settlement.request_id for settlement in written}


def test_an_unreadable_file_does_not_stop_the_replay_of_others(
    journal_directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (journal_directory / "0-0.a-directory.ndjson").mkdir()
    journal.write(new_settlement())

    assert lines_replayed() == 1
    assert "cannot be read" in caplog.text


def test_an_incomplete_line_is_logged_and_skipped(
    journal_directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    journal.write(new_settlement())
    [file] = journal_directory.iterdir()
    file.write_text('{"request_id": "01a2\n' + file.read_text())

    assert lines_replayed() == 1
    assert "01a2" in caplog.text and not list(journal_directory.iterdir())


def test_a_line_of_a_later_version_is_moved_to_a_file_of_rejected_lines(
    journal_directory: Path,
) -> None:
    journal.write(new_settlement())
    [file] = journal_directory.iterdir()
    later = file.read_text().replace('"v": 1', '"v": 2')
    file.write_text(file.read_text() + later)

    statuses = journal.replay(settle_nothing).statuses

    assert (statuses[LineStatus.SETTLED], statuses[LineStatus.REJECTED]) == (1, 1)
    assert [path.read_text() for path in journal_directory.iterdir()] == [later]


def test_a_line_has_numbers_and_names_only(journal_directory: Path) -> None:
    journal.write(new_settlement())

    [line] = next(iter(journal_directory.iterdir())).read_text().splitlines()
    fields = json.loads(line)
    assert set(fields) == {"v", "reservation", "usage", "outcome", "billed"}
    texts = {name for name, value in fields["reservation"].items() if isinstance(value, str)}
    assert texts == {"database", "request_id", "model", "operation", "worker", "opened_at"}


# --- Requests while the database is away ----------------------------------------------------------


@pytest.fixture
def database_away(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Let settling fail, as when the database fails after the hold."""

    def fail(*_args: Any, **_kwargs: Any) -> None:
        raise OperationalError("server closed the connection")

    monkeypatch.setattr(ledger, "settle", fail)
    return monkeypatch


@pytest.mark.usefixtures("priced", "ollama", "journal_directory")
def test_a_request_that_ends_while_the_database_is_away_is_billed_when_it_returns(
    alice: Caller, database_away: pytest.MonkeyPatch
) -> None:
    response = alice.post("/generate", model="llama3", prompt="hi").json()
    assert response["done"] and response["usage"]["cost"] == "0.000038"
    assert Hold.objects.get().state == "open"

    database_away.undo()
    leases.LeaseRenewer().tick()

    row = TokenUsage.objects.get()
    assert f"{row.cost:f}" == response["usage"]["cost"] and row.outcome == "complete"
    assert books_balance()


@pytest.mark.usefixtures("priced")
def test_a_line_that_is_replayed_twice_is_billed_once(
    alice: Caller,
    ollama: FakeOllama,
    database_away: pytest.MonkeyPatch,
    journal_directory: Path,
) -> None:
    alice.post("/generate", model="llama3", prompt="hi")
    database_away.undo()
    [file] = journal_directory.iterdir()
    file.write_text(file.read_text() * 2)

    journal.replay(leases.settle_from_journal)

    assert TokenUsage.objects.count() == 1 and books_balance()


def test_a_cost_beyond_64_bits_is_kept_in_the_journal_without_a_receipt(
    alice: Caller, priced: ModelPrice, journal_directory: Path
) -> None:
    meter = LedgerMeter(new_request_id())
    ids = (alice.account.pk, alice.key.pk)
    meter.open(Demand(*ids, Operation.CHAT, "llama3:latest", 10, 10, 10))

    assert meter.close(Usage(10**19, 1, started=True), Outcome.COMPLETE) is None

    assert str(10**19) in next(journal_directory.iterdir()).read_text()


# --- Recovery leaves holds with a journal alone ---------------------------------------------------


def test_a_hold_in_the_journal_of_an_exited_worker_is_not_settled_as_abandoned(
    alice: Caller, priced: ModelPrice, journal_directory: Path
) -> None:
    """One process replays the journal while another one looks for abandoned holds."""
    hold = reserve(alice, priced)
    usage = Usage(10, 5, CountSource.UPSTREAM, started=True)
    settlement = Settlement(reserved(hold), usage, Outcome.COMPLETE, billed=True)
    with writer(journal_directory, settlement) as process:
        local = next(journal_directory.iterdir()).name.partition(".")[0].rpartition("_")[2]
        namespace = processes.identity().rpartition("/")[0]
        Hold.objects.filter(pk=hold.pk).update(worker=f"{namespace}/{local}")
        process.kill()
    assert processes.has_exited(Hold.objects.get().worker)

    assert recovery.settle_abandoned() == 0

    journal.replay(leases.settle_from_journal)
    assert TokenUsage.objects.get().outcome == "complete" and books_balance()


def test_a_journal_that_cannot_be_replayed_delays_recovery_by_an_hour(
    alice: Caller, priced: ModelPrice, journal_directory: Path
) -> None:
    hold = reserve(alice, priced)
    (journal_directory / f"{processes.file_name(hold.worker)}.stuck.ndjson").mkdir()

    with database_time(hold.lease_until + timedelta(minutes=59)):
        assert recovery.settle_abandoned() == 0
    with database_time(hold.lease_until + timedelta(minutes=61)):
        assert recovery.settle_abandoned() == 1
