"""Lines of the journal that do not fit the database: of another one, or after a restore."""

import contextlib
import dataclasses
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from django.core.management import call_command
from django.db import connection

from billing import append_only, journal, leases, ledger
from billing.models import Hold, ModelPrice, TokenUsage, UsageDaily
from billing.money import from_units
from billing.pricing import Rates
from billing.reservations import Settlement, to_line
from gateway.http.request_ids import new_request_id
from gateway.metering import CountSource, Outcome, Usage
from tests.billing.test_ledger import books_balance, reserve, reserved
from tests.harness.callers import Caller
from tests.harness.journals import lines_replayed

pytestmark = pytest.mark.usefixtures("journal_directory")

OTHER_DATABASE = UUID(int=42)


def settlement_of(hold: Hold, **changed: Any) -> Settlement:
    """Return a settlement of a hold, with changes to its reservation."""
    usage = Usage(10, 5, CountSource.UPSTREAM, started=True)
    reservation = dataclasses.replace(reserved(hold), **changed)
    return Settlement(reservation, usage, Outcome.COMPLETE, billed=True)


def write(*settlements: Settlement) -> None:
    for settlement in settlements:
        journal.write(settlement)
    journal.close_own_file()


def delete_hold(hold: Hold) -> Hold:
    """Delete a hold, as when an older backup is restored."""
    ledger.settle(Settlement(reserved(hold), Usage(), Outcome.GATEWAY_FAILED, billed=False))
    with connection.schema_editor(atomic=False) as editor:
        append_only.unprotect(editor)
    TokenUsage.objects.all().delete()
    UsageDaily.objects.all().delete()
    Hold.objects.filter(pk=hold.pk).delete()
    with connection.schema_editor(atomic=False) as editor:
        append_only.protect(editor)
    return hold


def settle_holds(capsys: pytest.CaptureFixture[str]) -> str:
    """Run `settle_holds` and return what it writes."""
    with contextlib.suppress(SystemExit):
        call_command("settle_holds")
    captured = capsys.readouterr()
    return captured.out + captured.err


# --- Other databases ------------------------------------------------------------------------------


def test_lines_of_another_database_are_left_alone(
    alice: Caller,
    priced: ModelPrice,
    journal_directory: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    hold = reserve(alice, priced)
    write(*[settlement_of(hold, database=OTHER_DATABASE)] * 2)
    [file] = journal_directory.iterdir()
    before = file.read_text()

    output = settle_holds(capsys)

    assert "2 lines of the journal are of another database" in output
    assert str(OTHER_DATABASE) in output
    assert [path.read_text() for path in journal_directory.iterdir()] == [before]
    leases.LeaseRenewer().tick()
    assert caplog.text.count("is of another database") == 1
    assert Hold.objects.get().state == "open" and not TokenUsage.objects.exists()


def test_our_lines_among_those_of_another_database_are_settled_and_removed(
    alice: Caller, priced: ModelPrice, journal_directory: Path
) -> None:
    hold = reserve(alice, priced)
    other = settlement_of(hold, database=OTHER_DATABASE)
    write(other, settlement_of(hold), other)
    worker = next(journal_directory.iterdir()).name.partition(".")[0]

    journal.replay(leases.settle_from_journal)

    assert TokenUsage.objects.get().request_id == hold.request_id
    [file] = journal_directory.iterdir()
    assert file.read_text() == to_line(other) * 2 and file.name.partition(".")[0] == worker


def test_a_copy_with_a_new_database_id_leaves_lines_of_the_original_alone(
    alice: Caller,
    priced: ModelPrice,
    journal_directory: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write(settlement_of(reserve(alice, priced)))

    call_command("new_database_id")

    assert "1 lines of the journal are of another database" in settle_holds(capsys)
    assert len(list(journal_directory.iterdir())) == 1


# --- Restored backups -----------------------------------------------------------------------------


@pytest.mark.django_db(transaction=True)
def test_a_line_whose_hold_is_missing_is_settled_from_its_reservation(
    alice: Caller, priced: ModelPrice, capsys: pytest.CaptureFixture[str]
) -> None:
    """The restored backup has neither the hold nor what budgets held for it."""
    hold = delete_hold(reserve(alice, priced))
    write(settlement_of(hold), settlement_of(hold))

    output = settle_holds(capsys)

    assert "1 requests settled from the journal; 1 had been settled before" in output
    row, restored = TokenUsage.objects.get(), Hold.objects.get()
    assert (row.request_id, row.started_at) == (hold.request_id, hold.opened_at)
    assert row.cost == Decimal("0.00004")
    assert (restored.state, restored.tokens) == ("settled", hold.tokens)
    assert restored.amount == hold.amount
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


@pytest.mark.parametrize("reason", UNKNOWN)
def test_a_line_with_an_unknown_key_or_price_is_moved_to_a_file_of_rejected_lines(
    alice: Caller,
    priced: ModelPrice,
    journal_directory: Path,
    capsys: pytest.CaptureFixture[str],
    reason: str,
) -> None:
    """In a restored backup another key or price may have received the same id since."""
    hold = reserve(alice, priced)
    unknown = settlement_of(hold, request_id=new_request_id(), **UNKNOWN[reason])
    write(unknown, settlement_of(hold))

    output = settle_holds(capsys)

    assert "1 requests settled from the journal" in output
    [rejected] = journal_directory.iterdir()
    assert rejected.name.endswith(".ndjson.unknown") and str(rejected) in output
    assert rejected.read_text() == to_line(unknown)
    assert TokenUsage.objects.get().request_id == hold.request_id and books_balance()


def test_settle_holds_fails_if_a_line_was_rejected(alice: Caller, priced: ModelPrice) -> None:
    write(settlement_of(reserve(alice, priced), request_id=new_request_id(), key_id=10**9))

    with pytest.raises(SystemExit) as failed:
        call_command("settle_holds")

    assert failed.value.code == 1


def test_a_file_of_rejected_lines_is_replayed_after_it_is_renamed(
    alice: Caller, priced: ModelPrice, journal_directory: Path
) -> None:
    write(settlement_of(reserve(alice, priced)))
    [file] = journal_directory.iterdir()
    rejected = file.rename(file.with_name(file.name + ".unknown"))
    assert lines_replayed() == 0

    rejected.rename(rejected.with_suffix(""))

    assert lines_replayed(leases.settle_from_journal) == 1 and books_balance()


def test_a_cost_beyond_64_bits_is_rejected_and_other_lines_are_settled(
    alice: Caller, priced: ModelPrice, journal_directory: Path
) -> None:
    too_large, valid = reserve(alice, priced), reserve(alice, priced)
    usage = Usage(10**19, 4, CountSource.UPSTREAM, started=True)
    settlement = Settlement(reserved(too_large), usage, Outcome.COMPLETE, billed=True)
    write(settlement, settlement_of(valid))

    leases.LeaseRenewer().tick()

    assert TokenUsage.objects.get().request_id == valid.request_id and books_balance()
    [rejected] = journal_directory.iterdir()
    assert str(10**19) in rejected.read_text()
