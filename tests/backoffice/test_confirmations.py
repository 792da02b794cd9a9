"""The admin pages confirm what they have read, and ask before an unusual amount or price."""

from datetime import timedelta
from decimal import Decimal

import pytest
from django.test import Client
from django.utils import timezone

from billing import price_book, statements
from billing.models import Entry, ModelPrice
from tests.fakes.ollama import FakeOllama
from tests.harness.backoffice import PRICES, add_credit, schedule, text_of
from tests.harness.callers import Caller

pytestmark = pytest.mark.django_db


def test_the_page_confirms_the_amount_it_has_read(admin_client: Client, alice: Caller) -> None:
    page = add_credit(admin_client, alice.account, amount="€1.050,50")
    assert Entry.objects.latest("pk").amount == Decimal("1050.5")

    page_text = text_of(admin_client.get(page["Location"]))
    assert "Top-up of 1,050.50 USD posted to Alice Ltd." in page_text


def test_the_page_takes_a_balance_below_zero_only_if_confirmed(
    admin_client: Client, alice: Caller
) -> None:
    assert "The balance would be -975 USD." in text_of(
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
    assert "Account Eve Ltd created. Next, issue a key." in text_of(page)


def test_the_page_accepts_an_unusual_price_only_if_confirmed(
    admin_client: Client, priced: ModelPrice
) -> None:
    page = text_of(schedule(admin_client, input_per_1k="5"))
    assert "Tick the box if you mean it." in page and ModelPrice.objects.count() == 3

    assert schedule(admin_client, input_per_1k="5", unusual="on").status_code == 302


def test_the_page_confirms_a_new_price(admin_client: Client, ollama: FakeOllama) -> None:
    page_text = text_of(admin_client.get(schedule(admin_client)["Location"]))
    assert (
        "The price of llama3:latest, 2.00 / 2.00 USD per 1,000,000 tokens, is effective now."
        in page_text
    )

    later = {"effective_from_0": "2190-01-31", "effective_from_1": "08:00:00"}
    page_text = text_of(
        admin_client.get(schedule(admin_client, model="nonsuch", **later)["Location"])
    )
    assert "starts at 2190-01-31 08:00 UTC." in page_text
    assert "The model nonsuch:latest is not installed at Ollama." in page_text


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
