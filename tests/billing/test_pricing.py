"""A cost is a product of whole numbers, and the outcome decides whether a request is billed."""

from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from billing.money import MAX_UNITS, from_units
from billing.pricing import (
    FREE_BELOW,
    MAX_PRICE,
    InvalidPrice,
    Rates,
    cost,
    is_billed,
    per_1k,
    per_1m,
    per_token,
)
from gateway.metering import Outcome, Usage

TOKENS = st.integers(0, 10**9)
PRICES = st.integers(0, 10**12)
RATES = st.builds(Rates, PRICES, PRICES)
SMALL = st.integers(0, 10**4)
SMALL_RATES = st.builds(Rates, st.integers(0, 10**9), st.integers(0, 10**9))


# --- Cost -----------------------------------------------------------------------------------------


def test_a_cost_is_tokens_times_price() -> None:
    assert cost(Rates(2, 3), 10, 20) == 80


def test_the_price_in_the_readme_gives_the_cost_in_the_readme() -> None:
    rates = Rates(per_token("0.002"), per_token("0.004"))

    assert from_units(cost(rates, 5, 9)) == Decimal("0.000046")


@examples(deadline=None)
@given(RATES, TOKENS, TOKENS)
def test_a_cost_is_exact_or_rejected(rates: Rates, read: int, written: int) -> None:
    exact = rates.prompt * read + rates.completion * written
    if exact > MAX_UNITS:
        with pytest.raises(OverflowError):
            cost(rates, read, written)
    else:
        assert cost(rates, read, written) == exact


@examples(deadline=None)
@given(SMALL_RATES, SMALL, SMALL, SMALL, SMALL)
def test_more_tokens_never_cost_less(rates: Rates, a: int, b: int, more: int, yet: int) -> None:
    assert cost(rates, a, b) <= cost(rates, a + more, b + yet)


@examples(deadline=None)
@given(SMALL_RATES, SMALL_RATES, SMALL, SMALL)
def test_higher_prices_never_cost_less(low: Rates, add: Rates, a: int, b: int) -> None:
    high = Rates(low.prompt + add.prompt, low.completion + add.completion)

    assert cost(low, a, b) <= cost(high, a, b)


@examples(deadline=None)
@given(PRICES, PRICES)
def test_zero_tokens_cost_nothing(prompt: int, completion: int) -> None:
    assert cost(Rates(prompt, completion), 0, 0) == 0


@examples(deadline=None)
@given(SMALL_RATES, SMALL, SMALL, SMALL, SMALL)
def test_two_requests_cost_as_much_as_one_with_their_tokens(
    rates: Rates, a: int, b: int, c: int, d: int
) -> None:
    assert cost(rates, a, b) + cost(rates, c, d) == cost(rates, a + c, b + d)


# --- Prices ---------------------------------------------------------------------------------------


@examples(deadline=None)
@given(st.integers(0, 99), st.integers(0, 10**6 - 1), st.integers(1, 6))
def test_a_price_that_is_read_and_written_is_the_same(
    units: int, decimals: int, places: int
) -> None:
    text = f"{min(units, 999)}.{decimals:06}"[: len(str(min(units, 999))) + 1 + places]

    assert per_1k(per_token(text)) == Decimal(text)


PER_TOKEN = [
    ("0", 0),
    ("0.002", 2_000_000),
    ("0.000000001", 1),
    ("0.0015", 1_500_000),
    ("100", MAX_PRICE),
    (Decimal("0.0020"), 2_000_000),
    (" 0.002 ", 2_000_000),
]


@pytest.mark.parametrize(("text", "units"), PER_TOKEN)
def test_a_price_per_1k_is_a_whole_number_per_token(text: Any, units: int) -> None:
    assert per_token(text) == units


INVALID = [
    *["", " ", "free", "NaN", "Infinity", "1e-3", "+1", "-1", "-0.002", "1,5", "0.002 USD", "٣"],
    *["0.0000000001", "100.000001", "101", "9" * 40, Decimal("NaN"), Decimal("-1"), None],
]


@pytest.mark.parametrize("text", INVALID, ids=lambda text: repr(text)[:20])
def test_an_invalid_price_is_rejected(text: Any) -> None:
    with pytest.raises(InvalidPrice):
        per_token(text)


def test_a_price_can_be_given_per_thousand_and_per_million() -> None:
    assert f"{per_1k(2_000_000):f}" == "0.002"
    assert f"{per_1m(2_000_000):f}" == "2"
    assert f"{per_1m(1):f}" == "0.000001"


# --- Outcomes -------------------------------------------------------------------------------------

NOT_STARTED = Usage()
EMPTY = Usage(5, 0, started=True)
# A response without streaming that ended early: generated, but not delivered.
UNDELIVERED = Usage(5, 300, started=True)
LITTLE = Usage(5, FREE_BELOW - 1, started=True, delivered=True)
ENOUGH = Usage(5, FREE_BELOW, started=True, delivered=True)

# Whether each is billed by default, and with BILL_INTERRUPTED=off.
BILLED = [
    *[(Outcome.COMPLETE, usage, True, True) for usage in (EMPTY, UNDELIVERED, LITTLE)],
    *[
        (outcome, usage, usage.started, usage.started)
        for outcome in (Outcome.CLIENT_LEFT, Outcome.KEY_REVOKED, Outcome.ANSWER_TOO_LONG)
        for usage in (NOT_STARTED, EMPTY, UNDELIVERED, LITTLE)
    ],
    *[
        (outcome, usage, usage.delivered, False)
        for outcome in (Outcome.INVALID_REQUEST, Outcome.GATEWAY_STOPPED, Outcome.EXPIRED)
        for usage in (NOT_STARTED, EMPTY, UNDELIVERED, LITTLE)
    ],
    *[
        (outcome, usage, usage is ENOUGH, False)
        for outcome in (Outcome.UPSTREAM_BROKE, Outcome.UPSTREAM_STALLED)
        for usage in (NOT_STARTED, EMPTY, UNDELIVERED, LITTLE, ENOUGH)
    ],
    (Outcome.UPSTREAM_REFUSED, NOT_STARTED, False, False),
    (Outcome.GATEWAY_FAILED, ENOUGH, False, False),
]


@pytest.mark.parametrize(("outcome", "usage", "by_default", "if_off"), BILLED)
def test_the_outcome_decides_whether_a_request_is_billed(
    outcome: Outcome, usage: Usage, by_default: bool, if_off: bool
) -> None:
    assert is_billed(outcome, usage, bill_interrupted=True) is by_default
    assert is_billed(outcome, usage, bill_interrupted=False) is if_off


def test_the_table_covers_every_outcome() -> None:
    assert {outcome for outcome, *_ in BILLED} == set(Outcome)
