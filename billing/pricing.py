"""Prices and costs, in whole smallest units per token. Pure."""

from dataclasses import dataclass
from decimal import Decimal

from billing.money import MAX_UNITS, from_units, scale, to_units
from gateway.metering import Outcome, Usage

# 100 per 1,000 tokens, or 100,000 in a currency of small units. That is far above any real price,
# and low enough that a cost fits 64 bits for every token count that the gateway accepts.
MAX_PRICE = 10**11

# The client left, its key was revoked, or the response took too long. Billed as soon as the
# model server had started, or disconnecting early would avoid paying.
BILLED_ONCE_STARTED = (Outcome.CLIENT_LEFT, Outcome.KEY_REVOKED, Outcome.ANSWER_TOO_LONG)
# The prompt or the gateway ended the request: billed if anything was delivered.
INTERRUPTIONS = (Outcome.INVALID_REQUEST, Outcome.GATEWAY_STOPPED, Outcome.EXPIRED)
# The model server failed: not billed if fewer than FREE_BELOW tokens were delivered.
FAILURES = (Outcome.UPSTREAM_BROKE, Outcome.UPSTREAM_STALLED)
FREE_BELOW = 64


class InvalidPrice(ValueError):
    """The text is not a valid price; the message has the reason."""


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
    """Tell whether a request with this outcome is billed.

    A complete response is billed. One of BILLED_ONCE_STARTED is billed if it had started. Any other
    interrupted response is billed if something was delivered and `bill_interrupted` is on; a
    failure of the model server only from FREE_BELOW tokens on. A response that is not streamed and
    fails delivers nothing. Requests that were rejected, and those that a defect of the gateway
    ended, are never billed.
    """
    if outcome is Outcome.COMPLETE:
        return True
    if outcome in BILLED_ONCE_STARTED:
        return usage.started
    if outcome in INTERRUPTIONS:
        return bill_interrupted and usage.delivered
    if outcome in FAILURES:
        enough = usage.completion_tokens >= FREE_BELOW
        return bill_interrupted and usage.delivered and enough
    return False


def per_token(price_per_1k: str | Decimal) -> int:
    """Turn a price per 1,000 tokens into smallest units per token; raise InvalidPrice.

    A price has three decimals fewer than an amount, so the price of one token is a whole number.
    """
    try:
        units = to_units(price_per_1k)
    except ValueError:
        raise InvalidPrice(f"'{price_per_1k}' is not a price such as 0.002.") from None
    if units < 0 or units // 1000 > MAX_PRICE:
        highest = f"{per_1k(MAX_PRICE):f}"
        raise InvalidPrice(f"'{price_per_1k}' is out of range; prices go from 0 to {highest}.")
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
