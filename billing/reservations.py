"""What is set aside for a request, and how the request ended: all that a settlement needs.

A settlement carries its whole reservation, so that it can be written where the database has lost
the hold: in a power cut, or because an older backup was restored.
"""

import json
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from billing.money import to_units
from billing.pricing import Rates, cost
from gateway.metering import CountSource, Outcome, Usage

# Of the lines of the journal. A line of a later version is not understood, and is kept.
VERSION = 1


@dataclass(frozen=True, slots=True)
class Reservation:
    """What a hold says, and in which database it was written."""

    database: UUID
    request_id: UUID
    account_id: int
    key_id: int
    price_id: int
    rates: Rates
    model: str
    operation: str
    amount: int
    tokens: int
    prompt_estimate: int
    # [budget, month] of each that gave; the month is empty where a budget has none.
    held_in: tuple[tuple[int, str], ...]
    worker: str
    opened_at: datetime


def reservation_of(held: Any, rates: Rates) -> Reservation:
    """Return what a hold of the ledger says, which has its `database` with it."""
    return Reservation(
        database=UUID(str(held.database)),
        request_id=held.request_id,
        account_id=held.account_id,
        key_id=held.key_id,
        price_id=held.price_id,
        rates=rates,
        model=held.model,
        operation=held.operation,
        amount=to_units(held.amount),
        tokens=held.tokens,
        prompt_estimate=held.prompt_estimate,
        held_in=tuple((budget_id, month) for budget_id, month in held.held_in),
        worker=held.worker,
        opened_at=held.opened_at,
    )


@dataclass(frozen=True, slots=True)
class Settlement:
    """A reservation with what was used of it, and how that ended."""

    reservation: Reservation
    usage: Usage
    outcome: Outcome
    billed: bool

    @property
    def request_id(self) -> UUID:
        return self.reservation.request_id

    @property
    def cost(self) -> int:
        """Return what it comes to, in smallest units; raise OverflowError past 64 bits."""
        usage = self.usage
        used = (usage.prompt_tokens, usage.completion_tokens)
        return cost(self.reservation.rates, *used) if self.billed else 0


def to_line(settlement: Settlement) -> str:
    """Write a settlement as a line of JSON. It holds numbers and names, no prompt and no key."""
    return json.dumps({"v": VERSION, **asdict(settlement)}, default=str) + "\n"


def from_line(line: str) -> Settlement:
    """Read a line; raise ValueError, KeyError or TypeError if it is not one of this version."""
    found: Any = json.loads(line)
    if found["v"] != VERSION:
        raise ValueError(f"version {found['v']}")
    usage = found["usage"]
    return Settlement(
        reservation=_reservation(found["reservation"]),
        usage=Usage(**{**usage, "source": CountSource(usage["source"])}),
        outcome=Outcome(found["outcome"]),
        billed=found["billed"] is True,
    )


def _reservation(found: Any) -> Reservation:
    return Reservation(
        **{
            **found,
            "database": UUID(found["database"]),
            "request_id": UUID(found["request_id"]),
            "rates": Rates(**found["rates"]),
            "held_in": tuple((int(budget), str(month)) for budget, month in found["held_in"]),
            "opened_at": datetime.fromisoformat(found["opened_at"]),
        }
    )
