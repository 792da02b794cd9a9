"""Settlements to write to the journal, and what a replay reads."""

from datetime import UTC, datetime
from uuid import UUID

from billing import journal
from billing.journal import LineStatus
from billing.pricing import Rates
from billing.reservations import Reservation, Settlement
from gateway.http.request_ids import new_request_id
from gateway.metering import CountSource, Outcome, Usage


def new_settlement() -> Settlement:
    """Return a settlement that no database knows."""
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


def settle_nothing(_settlement: Settlement) -> LineStatus:
    return LineStatus.SETTLED


def lines_replayed(settle: journal.Settle = settle_nothing) -> int:
    return journal.replay(settle).statuses.total()


def replayed_settlements() -> list[Settlement]:
    """Replay the journal and return the settlements that were read."""
    settlements: list[Settlement] = []

    def settle(settlement: Settlement) -> LineStatus:
        settlements.append(settlement)
        return LineStatus.SETTLED

    journal.replay(settle)
    return settlements
