"""Amounts and prices as people type them, and typing errors that would cost money."""

from decimal import Decimal
from io import StringIO
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.utils import timezone

from billing import price_book, statements
from billing.amounts import read_amount
from billing.models import ModelPrice
from tests.fakes.ollama import FakeOllama
from tests.harness.callers import Caller

pytestmark = pytest.mark.django_db


def run(command: str, *args: str) -> tuple[str, str]:
    out, err = StringIO(), StringIO()
    call_command(command, *args, stdout=out, stderr=err)
    return out.getvalue(), err.getvalue()


# --- Amounts -------------------------------------------------------------------------------------

VALID = {
    "50": "50",
    "50,00": "50",
    "50.00": "50",
    "0,5": "0.5",
    "-0,5": "-0.5",
    "€50": "50",
    "50 €": "50",
    "USD 50": "50",
    "50 usd": "50",
    "1,000.50": "1000.5",
    "1.000,50": "1000.5",
    "1'000.50": "1000.5",
    "1 000,50": "1000.5",
    "1,000,000": "1000000",
    "1.000.000": "1000000",
    "1.000": "1",
    "0,123": "0.123",
    "0.000000000001": "0.000000000001",
}
INVALID = [
    *("1,000", "-12,345", "12,34,5", "1.000,5.0", "1,00.5", "ten", "1e3", "", "--5", "5-", "1/2"),
    *("EUR 50", "5 0 x", "0x10", ".5", "5.", "٣"),
]


@pytest.mark.parametrize(("text", "amount"), VALID.items())
def test_an_amount_may_be_written_in_common_formats(text: str, amount: str) -> None:
    assert read_amount(text, "USD") == Decimal(amount)


@pytest.mark.parametrize("text", INVALID)
def test_an_invalid_or_ambiguous_amount_is_rejected(text: str) -> None:
    with pytest.raises(ValueError, match=r"amount|two ways"):
        read_amount(text, "USD")


def test_an_ambiguous_amount_is_rejected_with_both_readings() -> None:
    with pytest.raises(ValueError, match=r"write 1000 or 1\.000"):
        read_amount("1,000", "USD")


# --- Balances below zero --------------------------------------------------------------------------


def test_grant_takes_a_balance_below_zero_only_with_force(alice: Caller) -> None:
    with pytest.raises(CommandError, match=r"leave Alice Ltd at -975 USD.* --force"):
        run("grant", "Alice Ltd", "-1000", "--reason", "back")
    assert statements.balance(alice.account) == 25

    assert (
        "-5 USD posted. Alice Ltd now has 20" in run("grant", "Alice Ltd", "-5", "--reason", "b")[0]
    )
    run("grant", "Alice Ltd", "-1000", "--reason", "back", "--force")
    assert statements.balance(alice.account) == -980
    assert "has -970" in run("grant", "Alice Ltd", "10", "--reason", "more")[0]


# --- Prices --------------------------------------------------------------------------------------


def test_set_price_prints_the_price_per_million_and_warns_of_a_missing_model(
    ollama: FakeOllama,
) -> None:
    out, err = run("set_price", "llama3", "--input", "0.002", "--output", "0.004")
    assert "That is 2 input, 4 output, in USD per 1,000,000 tokens." in out and not err

    _out, err = run("set_price", "lama3", "--input", "0.002")
    assert "lama3:latest is not installed at Ollama; did you mean llama3:latest?" in err


def test_set_price_does_not_warn_when_ollama_is_unreachable(settings: Any) -> None:
    assert not run("set_price", "llama3", "--input", "0.002")[1]


@pytest.mark.parametrize("model", ["llama3", "mixtral"])
def test_set_price_accepts_a_price_100_times_the_usual_only_with_force(
    priced: ModelPrice, model: str
) -> None:
    with pytest.raises(CommandError, match=r"5000 per 1,000,000 .* times the .* --force"):
        run("set_price", model, "--input", "5")
    assert ModelPrice.objects.filter(model=f"{model}:latest", prompt_price__gt=10**9).count() == 0

    run("set_price", model, "--input", "0.1")
    run("set_price", model, "--input", "20", "--force")
    price = price_book.effective_price(f"{model}:latest", timezone.now())
    assert price is not None and price.prompt_per_1k == 20
