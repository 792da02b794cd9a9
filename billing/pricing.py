"""Multiply tokens and money. Pure, whole numbers only: smallest units and tokens."""

from dataclasses import dataclass
from decimal import Decimal

from billing.money import MAX_UNITS, from_units, scale, to_units
from gateway.metering import Outcome, Usage

# 100 per 1,000 tokens, or 100,000 in a currency of small units: far above any price, and low enough
# that no cost leaves 64 bits, whatever count of tokens is believed.
MAX_PRICE = 10**11

# Ends of the client's side: always billed, or leaving early would be a way not to pay.
CLIENT_ENDS = (Outcome.CLIENT_LEFT, Outcome.KEY_REVOKED, Outcome.ANSWER_TOO_LONG)
# Ends that a prompt can cause, and ends of the gateway's side: billed if anything was delivered.
INTERRUPTIONS = (Outcome.INVALID_REQUEST, Outcome.GATEWAY_STOPPED, Outcome.EXPIRED)
# Failures of the model server itself: free while fewer tokens than this were delivered.
FAILURES = (Outcome.UPSTREAM_BROKE, Outcome.UPSTREAM_STALLED)
FREE_BELOW = 64


class InvalidPrice(ValueError):
    """Not a price; the message says why."""


@dataclass(frozen=True, slots=True)
class Rates:
    """Prices in smallest units: per prompt token and per completion token."""

    prompt: int
    completion: int


def cost(rates: Rates, prompt_tokens: int, completion_tokens: int) -> int:
    """Return the exact cost in smallest units; raise OverflowError past 64 bits."""
    total = rates.prompt * prompt_tokens + rates.completion * completion_tokens
    if total > MAX_UNITS:
        raise OverflowError("the cost leaves 64 bits")
    return total


def is_billed(outcome: Outcome, usage: Usage, *, bill_interrupted: bool) -> bool:
    """Tell whether a response that ended like this is billed.

    Complete: yes. Ended from the client's side: if it had begun.
    Ended by anybody else: if something was delivered, and the operator bills that. A whole response
    that fails delivers nothing.
    Never: what was refused before the first chunk, and what a defect of the gateway ended.
    """
    if outcome is Outcome.COMPLETE:
        return True
    if outcome in CLIENT_ENDS:
        return usage.started
    if outcome in INTERRUPTIONS:
        return bill_interrupted and usage.delivered
    if outcome in FAILURES:
        enough = usage.completion_tokens >= FREE_BELOW
        return bill_interrupted and usage.delivered and enough
    return False


def per_token(price_per_1k: str | Decimal) -> int:
    """Turn a price per 1,000 tokens into smallest units per token; raise InvalidPrice.

    It has three decimals less than an amount, so that one token's is a whole number of units.
    """
    try:
        units = to_units(price_per_1k)
    except ValueError:
        raise InvalidPrice(f"'{price_per_1k}' is not a price such as 0.002.") from None
    if units < 0 or units // 1000 > MAX_PRICE:
        most = f"{per_1k(MAX_PRICE):f}"
        raise InvalidPrice(f"'{price_per_1k}' is out of range; prices go from 0 to {most}.")
    if units % 1000:
        raise InvalidPrice(f"'{price_per_1k}' has more than {price_decimals()} decimals.")
    return units // 1000


def price_decimals() -> int:
    """Return how many decimals a price per 1,000 tokens may have."""
    return scale() - 3


def per_1k(units_per_token: int) -> Decimal:
    """Turn smallest units per token into a price per 1,000 tokens."""
    return from_units(units_per_token * 1000)


def per_1m(units_per_token: int) -> Decimal:
    """Turn smallest units per token into a price per 1,000,000 tokens."""
    return from_units(units_per_token * 1_000_000)
