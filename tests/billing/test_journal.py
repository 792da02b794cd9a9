"""What cannot be settled while the database is away is settled exactly once when it is back."""

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any
from unittest.mock import Mock
from uuid import UUID

import pytest
from django.db import OperationalError

from billing import journal, keeper, ledger, orphans, workers
from billing.models import Hold, ModelPrice, TokenUsage
from gateway.metering import CountSource, Outcome, Usage
from gateway.request_ids import new_request_id
from tests.billing.test_ledger import books_balance, reserve
from tests.conftest import Caller, database_time
from tests.fakes.ollama import FakeOllama


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, settings: Any) -> Iterator[Path]:
    journal.let_go()
    settings.JOURNAL_DIR = str(tmp_path)
    yield tmp_path
    journal.let_go()


@pytest.fixture
def away(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Settling fails, as with a database that went away after the hold."""

    def fail(*_args: Any, **_kwargs: Any) -> None:
        raise OperationalError("server closed the connection")

    monkeypatch.setattr(ledger, "settle", fail)
    return monkeypatch


def ending() -> journal.Ending:
    usage = Usage(3, 4, CountSource.UPSTREAM, started=True)
    return journal.Ending(new_request_id(), usage, Outcome.COMPLETE, billed=True)


def test_what_is_written_is_what_is_replayed(folder: Path) -> None:
    written = [ending() for _ in range(3)]
    for one in written:
        journal.write(one)
    replayed: list[journal.Ending] = []

    assert journal.replay(replayed.append) == 3

    assert replayed == written and not list(folder.iterdir())


def test_a_replay_that_fails_is_taken_up_again(folder: Path) -> None:
    journal.write(ending())

    def fail(_ending: journal.Ending) -> None:
        raise OperationalError

    with pytest.raises(OperationalError):
        journal.replay(fail)

    assert journal.replay(lambda _ending: None) == 1


WRITER = """
import sys, django
from django.conf import settings
settings.configure(JOURNAL_DIR=sys.argv[1])
from uuid import UUID
from billing import journal
from gateway.metering import Outcome, Usage
journal.write(journal.Ending(UUID(sys.argv[2]), Usage(3, 4, started=True), Outcome.COMPLETE, True))
print("written", flush=True)
sys.stdin.read()
"""


@contextlib.contextmanager
def writer(folder: Path, request_id: UUID) -> Iterator[subprocess.Popen[str]]:
    """Another process, which has written one ending and lives until its input ends."""
    arguments = [sys.executable, "-c", WRITER, str(folder), str(request_id)]
    pipe = subprocess.PIPE
    with subprocess.Popen(arguments, stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdout and process.stdout.readline() == "written\n"
        yield process


def test_the_journal_of_another_process_is_taken_over_when_it_has_died(folder: Path) -> None:
    with writer(folder, new_request_id()) as process:
        assert journal.replay(lambda _ending: None) == 0
        process.kill()

    assert journal.replay(lambda _ending: None) == 1 and not list(folder.iterdir())


def test_what_is_written_while_a_replay_fails_is_kept_too(folder: Path) -> None:
    written = [ending(), ending()]
    journal.write(written[0])
    with pytest.raises(OperationalError):
        journal.replay(Mock(side_effect=OperationalError))
    journal.write(written[1])
    replayed: list[journal.Ending] = []

    journal.replay(replayed.append)

    assert {one.request_id for one in replayed} == {one.request_id for one in written}


def test_a_journal_that_may_not_be_read_keeps_no_other_from_being_settled(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (folder / "0-0.a-folder.ndjson").mkdir()
    journal.write(ending())

    assert journal.replay(lambda _ending: None) == 1
    assert "cannot be read" in caplog.text


def test_half_a_line_keeps_nothing_else_from_being_settled(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    journal.write(ending())
    [own] = folder.iterdir()
    own.write_text('{"request_id": "01a2\n' + own.read_text() + '{"a": "later version"}\n')

    assert journal.replay(lambda _ending: None) == 1
    assert "01a2" in caplog.text and "later version" in caplog.text


@pytest.mark.usefixtures("priced")
def test_no_sweeper_takes_what_stands_in_the_journal_of_the_dead(
    alice: Caller, priced: ModelPrice, folder: Path
) -> None:
    """One process replays it while another looks for orphans: both have just been started."""
    hold = reserve(alice, priced)
    with writer(folder, hold.request_id) as process:
        local = next(folder.iterdir()).name.partition(".")[0].rpartition("_")[2]
        place = workers.identity().rpartition("/")[0]
        Hold.objects.filter(pk=hold.pk).update(worker=f"{place}/{local}")
        process.kill()
    assert workers.is_known_dead(Hold.objects.get().worker)

    assert orphans.settle_all() == 0

    journal.replay(keeper.settle_from_journal)
    assert TokenUsage.objects.get().outcome == "complete" and books_balance()


def test_a_journal_that_nobody_can_replay_is_not_waited_for_for_ever(
    alice: Caller, priced: ModelPrice, folder: Path
) -> None:
    hold = reserve(alice, priced)
    (folder / f"{workers.file_name(hold.worker)}.stuck.ndjson").mkdir()

    with database_time(hold.lease_until + timedelta(minutes=59)):
        assert orphans.settle_all() == 0
    with database_time(hold.lease_until + timedelta(minutes=61)):
        assert orphans.settle_all() == 1


@pytest.mark.usefixtures("priced")
def test_an_answer_under_way_when_the_database_goes_is_whole_and_billed_later(
    alice: Caller, ollama: FakeOllama, away: pytest.MonkeyPatch
) -> None:
    answer = alice.post("/generate", model="llama3", prompt="hi").json()
    assert answer["done"] and answer["usage"]["cost"] == "0.000038"
    assert Hold.objects.get().state == "open"

    away.undo()
    keeper.Keeper().tick()

    row = TokenUsage.objects.get()
    assert f"{row.cost:f}" == answer["usage"]["cost"] and row.outcome == "complete"
    assert books_balance()


@pytest.mark.usefixtures("priced")
def test_replaying_twice_bills_once(
    alice: Caller, ollama: FakeOllama, away: pytest.MonkeyPatch, folder: Path
) -> None:
    alice.post("/generate", model="llama3", prompt="hi")
    away.undo()
    [own] = folder.iterdir()
    line = own.read_text()
    own.write_text(line + line)

    journal.replay(keeper.settle_from_journal)

    assert TokenUsage.objects.count() == 1 and books_balance()


def test_a_journal_holds_numbers_and_no_words(folder: Path) -> None:
    journal.write(ending())

    [line] = next(iter(folder.iterdir())).read_text().splitlines()
    assert set(json.loads(line)) == {"request_id", "usage", "outcome", "billed"}
