"""What cannot be settled while the database is away is settled exactly once when it is back."""

import contextlib
import dataclasses
import json
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any
from unittest.mock import Mock
from uuid import UUID

import pytest
from django.core.management import call_command
from django.db import OperationalError, connection

from billing import append_only, journal, leases, ledger, processes, recovery
from billing.journal import Fate
from billing.meter import LedgerMeter
from billing.models import Hold, ModelPrice, TokenUsage, UsageDaily
from billing.money import from_units
from billing.pricing import Rates
from billing.reservations import Reservation, Settlement, to_line
from gateway.http.request_ids import new_request_id
from gateway.metering import CountSource, Demand, Operation, Outcome, Usage
from tests.billing.test_ledger import books_balance, reserve, reserved
from tests.fakes.ollama import FakeOllama
from tests.harness.callers import Caller, database_time


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


def ending() -> Settlement:
    """An ending that no database knows."""
    reservation = Reservation(
        database=UUID(int=7),
        request_id=new_request_id(),
        account_id=1,
        key_id=2,
        price_id=3,
        rates=Rates(2_000_000, 4_000_000),
        model="llama3:latest",
        operation="chat",
        amount=600_000_000,
        tokens=200,
        prompt_estimate=25,
        held_in=((1, ""), (2, "2026-11")),
        worker="host/boot/1/1-1",
        opened_at=datetime(2026, 11, 24, 12, 0, 0, 5, tzinfo=UTC),
    )
    usage = Usage(3, 4, CountSource.UPSTREAM, started=True)
    return Settlement(reservation, usage, Outcome.COMPLETE, billed=True)


def settle_nothing(_settlement: Settlement) -> Fate:
    return Fate.SETTLED


def lines_replayed(settle: journal.Settle = settle_nothing) -> int:
    return journal.replay(settle).fates.total()


def collected() -> list[Settlement]:
    """Replay, and return what was read."""
    found: list[Settlement] = []

    def settle(settlement: Settlement) -> Fate:
        found.append(settlement)
        return Fate.SETTLED

    journal.replay(settle)
    return found


def test_what_is_written_is_what_is_replayed(folder: Path) -> None:
    written = [ending() for _ in range(3)]
    for one in written:
        journal.write(one)
    assert collected() == written and not list(folder.iterdir())


def test_a_replay_that_fails_is_taken_up_again(folder: Path) -> None:
    journal.write(ending())

    def fail(_ending: Settlement) -> Fate:
        raise OperationalError

    with pytest.raises(OperationalError):
        journal.replay(fail)

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
def writer(folder: Path, settlement: Settlement) -> Iterator[subprocess.Popen[str]]:
    """Another process, which has written one ending and lives until its input ends."""
    arguments = [sys.executable, "-c", WRITER, str(folder), to_line(settlement)]
    pipe = subprocess.PIPE
    with subprocess.Popen(arguments, stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdout and process.stdout.readline() == "written\n"
        yield process


def test_the_journal_of_another_process_is_taken_over_when_it_has_died(folder: Path) -> None:
    with writer(folder, ending()) as process:
        assert lines_replayed() == 0
        process.kill()

    assert lines_replayed() == 1 and not list(folder.iterdir())


def test_what_is_written_while_a_replay_fails_is_kept_too(folder: Path) -> None:
    written = [ending(), ending()]
    journal.write(written[0])
    with pytest.raises(OperationalError):
        journal.replay(Mock(side_effect=OperationalError))
    journal.write(written[1])
    assert {one.request_id for one in collected()} == {one.request_id for one in written}


def test_a_journal_that_may_not_be_read_keeps_no_other_from_being_settled(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (folder / "0-0.a-folder.ndjson").mkdir()
    journal.write(ending())

    assert lines_replayed() == 1
    assert "cannot be read" in caplog.text


def test_half_a_line_keeps_nothing_else_from_being_settled(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    journal.write(ending())
    [own] = folder.iterdir()
    own.write_text('{"request_id": "01a2\n' + own.read_text())

    assert lines_replayed() == 1
    assert "01a2" in caplog.text and not list(folder.iterdir())


def test_a_line_of_a_later_version_is_moved_aside(folder: Path) -> None:
    journal.write(ending())
    [own] = folder.iterdir()
    later = own.read_text().replace('"v": 1', '"v": 2')
    own.write_text(own.read_text() + later)

    replayed = journal.replay(settle_nothing)

    assert (replayed.fates[Fate.SETTLED], replayed.fates[Fate.REFUSED]) == (1, 1)
    assert [path.read_text() for path in folder.iterdir()] == [later]


@pytest.mark.usefixtures("priced")
def test_no_sweeper_takes_what_stands_in_the_journal_of_the_dead(
    alice: Caller, priced: ModelPrice, folder: Path
) -> None:
    """One process replays it while another looks for orphans: both have just been started."""
    hold = reserve(alice, priced)
    with writer(folder, settlement(hold)) as process:
        local = next(folder.iterdir()).name.partition(".")[0].rpartition("_")[2]
        place = processes.identity().rpartition("/")[0]
        Hold.objects.filter(pk=hold.pk).update(worker=f"{place}/{local}")
        process.kill()
    assert processes.has_exited(Hold.objects.get().worker)

    assert recovery.settle_abandoned() == 0

    journal.replay(leases.settle_from_journal)
    assert TokenUsage.objects.get().outcome == "complete" and books_balance()


def test_a_journal_that_nobody_can_replay_is_not_waited_for_for_ever(
    alice: Caller, priced: ModelPrice, folder: Path
) -> None:
    hold = reserve(alice, priced)
    (folder / f"{processes.file_name(hold.worker)}.stuck.ndjson").mkdir()

    with database_time(hold.lease_until + timedelta(minutes=59)):
        assert recovery.settle_abandoned() == 0
    with database_time(hold.lease_until + timedelta(minutes=61)):
        assert recovery.settle_abandoned() == 1


@pytest.mark.usefixtures("priced")
def test_an_answer_under_way_when_the_database_goes_is_whole_and_billed_later(
    alice: Caller, ollama: FakeOllama, away: pytest.MonkeyPatch
) -> None:
    answer = alice.post("/generate", model="llama3", prompt="hi").json()
    assert answer["done"] and answer["usage"]["cost"] == "0.000038"
    assert Hold.objects.get().state == "open"

    away.undo()
    leases.LeaseRenewer().tick()

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

    journal.replay(leases.settle_from_journal)

    assert TokenUsage.objects.count() == 1 and books_balance()


def test_a_journal_holds_numbers_and_no_words(folder: Path) -> None:
    journal.write(ending())

    [line] = next(iter(folder.iterdir())).read_text().splitlines()
    found = json.loads(line)
    assert set(found) == {"v", "reservation", "usage", "outcome", "billed"}
    words = {name: value for name, value in found["reservation"].items() if isinstance(value, str)}
    assert set(words) == {"database", "request_id", "model", "operation", "worker", "opened_at"}


# --- Whose line it is -----------------------------------------------------------------------------


def settlement(hold: Hold, **fields: Any) -> Settlement:
    """An ending of a hold, on its way to the journal."""
    usage = Usage(10, 5, CountSource.UPSTREAM, started=True)
    reservation = dataclasses.replace(reserved(hold), **fields)
    return Settlement(reservation, usage, Outcome.COMPLETE, billed=True)


def written(*settlements: Settlement) -> None:
    for one in settlements:
        journal.write(one)
    journal.let_go()


def lost(hold: Hold) -> Hold:
    """Let the database forget a hold, as after the restore of an older backup."""
    ledger.settle(Settlement(reserved(hold), Usage(), Outcome.GATEWAY_FAILED, billed=False))
    with connection.schema_editor(atomic=False) as editor:
        append_only.unprotect(editor)
    TokenUsage.objects.all().delete()
    UsageDaily.objects.all().delete()
    Hold.objects.filter(pk=hold.pk).delete()
    with connection.schema_editor(atomic=False) as editor:
        append_only.protect(editor)
    return hold


def told(capsys: pytest.CaptureFixture[str]) -> str:
    """Run settle_holds and return what it says."""
    with contextlib.suppress(SystemExit):
        call_command("settle_holds")
    said = capsys.readouterr()
    return said.out + said.err


def test_lines_of_another_database_are_left_alone(
    alice: Caller,
    priced: ModelPrice,
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    hold = reserve(alice, priced)
    other = UUID(int=42)
    written(settlement(hold, database=other), settlement(hold, database=other))
    [file] = folder.iterdir()
    before = file.read_text()

    said = told(capsys)

    assert "2 lines of the journal are of another database" in said and str(other) in said
    assert [path.read_text() for path in folder.iterdir()] == [before]
    leases.LeaseRenewer().tick()
    assert caplog.text.count("is of another database") == 1
    assert Hold.objects.get().state == "open" and not TokenUsage.objects.exists()


def test_what_is_ours_among_foreign_lines_is_settled_and_the_rest_kept(
    alice: Caller, priced: ModelPrice, folder: Path
) -> None:
    hold = reserve(alice, priced)
    foreign = settlement(hold, database=UUID(int=42))
    written(foreign, settlement(hold), foreign)
    owner = next(folder.iterdir()).name.partition(".")[0]

    journal.replay(leases.settle_from_journal)

    assert TokenUsage.objects.get().request_id == hold.request_id
    [left] = folder.iterdir()
    assert left.read_text() == to_line(foreign) * 2 and left.name.partition(".")[0] == owner


def test_a_copy_with_an_id_of_its_own_leaves_the_originals_lines_alone(
    alice: Caller, priced: ModelPrice, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    written(settlement(reserve(alice, priced)))

    call_command("new_database_id")

    assert "1 lines of the journal are of another database" in told(capsys)
    assert len(list(folder.iterdir())) == 1


@pytest.mark.django_db(transaction=True)
def test_an_ending_whose_hold_is_gone_is_settled_from_what_it_carries(
    alice: Caller, priced: ModelPrice, capsys: pytest.CaptureFixture[str]
) -> None:
    """An older backup was restored: it knows neither the hold nor what it held."""
    hold = lost(reserve(alice, priced))
    written(settlement(hold), settlement(hold))

    assert "1 endings settled from the journal; 1 had been settled before" in told(capsys)

    row, found = TokenUsage.objects.get(), Hold.objects.get()
    assert (row.request_id, row.cost, row.started_at) == (
        hold.request_id,
        Decimal("0.00004"),
        hold.opened_at,
    )
    assert (found.state, found.tokens, found.amount) == ("settled", hold.tokens, hold.amount)
    assert from_units(alice.wallet.spent) == row.cost and alice.wallet.held == 0
    assert books_balance()


UNKNOWN: dict[str, dict[str, Any]] = {
    "no such key": {"key_id": 10**9},
    "the key of another account": {"account_id": 10**9},
    "a key that was created later": {"opened_at": datetime(2020, 1, 1, tzinfo=UTC)},
    "no such price": {"price_id": 10**9},
    "another price": {"rates": Rates(1, 1)},
    "the price of another model": {"model": "mistral:latest"},
}


@pytest.mark.parametrize("why", UNKNOWN)
def test_an_ending_that_names_what_is_not_there_is_moved_aside(
    alice: Caller,
    priced: ModelPrice,
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    why: str,
) -> None:
    """In a restored backup the numbers of a key or a price may have been given to others since."""
    hold = reserve(alice, priced)
    unknown = settlement(hold, request_id=new_request_id(), **UNKNOWN[why])
    written(unknown, settlement(hold))

    said = told(capsys)

    assert "1 endings settled from the journal" in said
    [aside] = folder.iterdir()
    assert aside.name.endswith(".ndjson.unknown") and str(aside) in said
    assert aside.read_text() == to_line(unknown)
    assert TokenUsage.objects.get().request_id == hold.request_id and books_balance()


def test_the_command_fails_when_a_line_was_moved_aside(alice: Caller, priced: ModelPrice) -> None:
    written(settlement(reserve(alice, priced), request_id=new_request_id(), key_id=10**9))

    with pytest.raises(SystemExit) as failed:
        call_command("settle_holds")

    assert failed.value.code == 1


def test_what_was_moved_aside_is_settled_once_it_can_be(
    alice: Caller, priced: ModelPrice, folder: Path
) -> None:
    hold = reserve(alice, priced)
    written(settlement(hold, database=reserved(hold).database))
    [file] = folder.iterdir()
    file.rename(file.with_name(file.name + ".unknown"))
    assert lines_replayed() == 0
    [aside] = folder.iterdir()

    aside.rename(aside.with_suffix(""))

    assert lines_replayed(leases.settle_from_journal) == 1 and books_balance()


def test_a_cost_beyond_64_bits_stops_no_other_line(
    alice: Caller, priced: ModelPrice, folder: Path
) -> None:
    absurd, good = reserve(alice, priced), reserve(alice, priced)
    usage = Usage(10**19, 4, CountSource.UPSTREAM, started=True)
    written(Settlement(reserved(absurd), usage, Outcome.COMPLETE, billed=True), settlement(good))

    leases.LeaseRenewer().tick()

    assert TokenUsage.objects.get().request_id == good.request_id and books_balance()
    [aside] = folder.iterdir()
    assert str(10**19) in aside.read_text()


def test_a_meter_whose_cost_is_beyond_64_bits_reports_none_and_keeps_the_line(
    alice: Caller, priced: ModelPrice, folder: Path
) -> None:
    meter = LedgerMeter(new_request_id())
    ids = (alice.account.pk, alice.key.pk)
    meter.open(Demand(*ids, Operation.CHAT, "llama3:latest", 10, 10, 10))

    assert meter.close(Usage(10**19, 1, started=True), Outcome.COMPLETE) is None

    assert str(10**19) in next(folder.iterdir()).read_text()
