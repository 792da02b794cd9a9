"""Make usage rows from settlements, of what this database knows. The ledger writes them."""

from datetime import datetime

from accounts.models import ApiKey
from billing.models import ModelPrice, TokenUsage
from billing.money import from_units
from billing.reservations import Reservation, Settlement
from gateway.http.request_ids import new_request_id


class UnknownReservation(Exception):
    """A settlement names a key or a price that this database does not have."""


def require_known(lost: Reservation) -> None:
    """Raise UnknownReservation unless key and price are those of the reservation.

    In a restored backup the same numbers may since have been given to others, created later.
    """
    keys = ApiKey.objects.filter(pk=lost.key_id, account_id=lost.account_id)
    if not keys.filter(created__lte=lost.opened_at).exists():
        raise UnknownReservation(f"key {lost.key_id} of account {lost.account_id}")
    price = ModelPrice.objects.filter(pk=lost.price_id, model=lost.model).first()
    if price is None or price.rates != lost.rates:
        raise UnknownReservation(f"price {lost.price_id} of {lost.model}")


def usage_row(settlement: Settlement, now: datetime) -> TokenUsage:
    """Return the row of a request that is settled now."""
    usage = settlement.usage
    row = _row(settlement, now)
    row.request_id = settlement.request_id
    row.prompt_tokens, row.completion_tokens = usage.prompt_tokens, usage.completion_tokens
    row.billed, row.cost = settlement.billed, from_units(settlement.cost)
    return row


def adjustment_row(settlement: Settlement, booked: TokenUsage, now: datetime) -> TokenUsage:
    """Return a second row of a request: what it took beyond the first, which may be less than
    nothing. The two together are what the settlement says."""
    usage, rates = settlement.usage, settlement.reservation.rates
    row = _row(settlement, now)
    row.request_id, row.adjusts = new_request_id(), booked.request_id
    due = (usage.prompt_tokens, usage.completion_tokens)
    paid = (booked.prompt_tokens, booked.completion_tokens)
    row.prompt_tokens, row.completion_tokens = (
        (one if settlement.billed else 0) - (other if booked.billed else 0)
        for one, other in zip(due, paid, strict=True)
    )
    tokens = row.prompt_tokens * rates.prompt + row.completion_tokens * rates.completion
    row.billed, row.cost = True, from_units(tokens)
    return row


def _row(settlement: Settlement, now: datetime) -> TokenUsage:
    """Return what is the same in both."""
    reservation = settlement.reservation
    return TokenUsage(
        account_id=reservation.account_id,
        key_id=reservation.key_id,
        price_id=reservation.price_id,
        model=reservation.model,
        operation=reservation.operation,
        prompt_price=reservation.rates.prompt,
        completion_price=reservation.rates.completion,
        outcome=settlement.outcome,
        count_source=settlement.usage.source,
        # A clock that was set back must not make an answer end before it began.
        started_at=min(reservation.opened_at, now),
        settled_at=now,
        day=now.date(),
    )
