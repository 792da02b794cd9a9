"""What cannot be settled while the database is away is settled exactly once when it is back."""

import json
from pathlib import Path
from typing import Any

import pytest
from django.db import OperationalError

from billing import journal, keeper, ledger
from billing.models import Hold, TokenUsage
from gateway.metering import CountSource, Outcome, Usage
from gateway.request_ids import new_request_id
from tests.billing.test_ledger import books_balance
from tests.billing.test_orphans import dead_worker
from tests.conftest import Caller
from tests.fakes.ollama import FakeOllama


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, settings: Any) -> Path:
    settings.JOURNAL_DIR = str(tmp_path)
    return tmp_path


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


def test_the_journal_of_a_dead_process_is_taken_over(folder: Path) -> None:
    journal.write(ending())
    [own] = folder.iterdir()
    own.rename(folder / f"{dead_worker().rpartition('/')[2]}.ndjson")

    assert journal.replay(lambda _ending: None) == 1


def test_the_journal_of_a_living_process_is_left_alone(folder: Path) -> None:
    """Process 1 always runs."""
    journal.write(ending())
    [own] = folder.iterdir()
    started = Path("/proc/1/stat").read_text().rpartition(")")[2].split()[19]
    own.rename(folder / f"1-{started}.ndjson")

    assert journal.replay(lambda _ending: None) == 0


def test_half_a_line_keeps_nothing_else_from_being_settled(folder: Path) -> None:
    journal.write(ending())
    [own] = folder.iterdir()
    own.write_text('{"request_id": "01a2\n' + own.read_text() + "[]\n")

    assert journal.replay(lambda _ending: None) == 1


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
