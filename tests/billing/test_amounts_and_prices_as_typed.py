"""Amounts and prices as people type them, and typing errors that would cost money."""

from datetime import timedelta
from decimal import Decimal
from io import StringIO
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.test import Client
from django.utils import timezone

from billing import price_book, statements
from billing.amounts import read_amount
from billing.models import Entry, ModelPrice
from tests.fakes.ollama import FakeOllama
from tests.harness.backoffice import PRICES, add_credit, schedule, text_of
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


def test_the_admin_page_confirms_the_amount_it_has_read(
    admin_client: Client, alice: Caller
) -> None:
    page = add_credit(admin_client, alice.account, amount="€1.050,50")
    assert Entry.objects.latest("pk").amount == Decimal("1050.5")

    page_text = text_of(admin_client.get(page["Location"]))
    assert "Top-up of 1,050.50 USD is posted to Alice Ltd." in page_text


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


def test_the_admin_page_takes_a_balance_below_zero_only_if_confirmed(
    admin_client: Client, alice: Caller
) -> None:
    assert "That would leave -975 USD" in text_of(
        add_credit(admin_client, alice.account, amount="-1000")
    )
    assert statements.balance(alice.account) == 25

    add_credit(admin_client, alice.account, amount="-1000", below_zero="on")
    assert statements.balance(alice.account) == -975


def test_the_page_of_a_new_account_says_what_to_do_next(admin_client: Client) -> None:
    add = "/admin/accounts/account/add/"
    page = admin_client.post(add, {"name": "Dora Ltd", "username": "dora"}, follow=True)
    assert "Next, add credit: its wallet is empty" in text_of(page)

    page = admin_client.post(
        add, {"name": "Eve Ltd", "username": "eve", "postpaid": "on"}, follow=True
    )
    assert "The account Eve Ltd is there. Next, issue a key." in text_of(page)


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


def test_the_admin_page_accepts_an_unusual_price_only_if_confirmed(
    admin_client: Client, priced: ModelPrice
) -> None:
    page = text_of(schedule(admin_client, input_per_1k="5"))
    assert "Tick the box if it is meant." in page and ModelPrice.objects.count() == 3

    assert schedule(admin_client, input_per_1k="5", unusual="on").status_code == 302


def test_the_admin_page_confirms_a_new_price(admin_client: Client, ollama: FakeOllama) -> None:
    page_text = text_of(admin_client.get(schedule(admin_client)["Location"]))
    assert (
        "The price of llama3:latest, 2.00 / 2.00 USD per 1,000,000 tokens, is active now."
        in page_text
    )

    later = {"effective_from_0": "2190-01-31", "effective_from_1": "08:00:00"}
    page_text = text_of(
        admin_client.get(schedule(admin_client, model="nonsuch", **later)["Location"])
    )
    assert "begins at 2190-01-31 08:00 UTC." in page_text
    assert "No model of the name nonsuch:latest is installed at Ollama." in page_text


def test_a_model_with_a_scheduled_price_is_listed_with_its_start(
    admin_client: Client, ollama: FakeOllama
) -> None:
    now = timezone.now()
    for days in (9, 2, 5):
        line = price_book.read_line("llama3", "0.002")
        price_book.schedule(line, effective_from=now + timedelta(days=days), now=now)

    page = text_of(admin_client.get(PRICES))

    assert "llama3%3Alatest" not in page.partition("<table")[0]
    assert f"llama3:latest: from {now + timedelta(days=2):%Y-%m-%d %H:%M} UTC" in page
