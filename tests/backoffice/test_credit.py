"""Wallets, and adding credit to them."""

from decimal import Decimal
from typing import Any

import pytest
from django.contrib.admin.models import LogEntry
from django.test import Client

from accounts.models import Account
from billing import ledger, statements
from billing.models import Budget, Entry
from tests.harness.backoffice import (
    ENTRIES,
    add_credit,
    page_of,
    text_of,
)
from tests.harness.callers import Caller

MONTHLY: dict[str, Any] = {"unit": Budget.Unit.TOKENS, "window": Budget.Window.MONTH}


@pytest.mark.parametrize(("tick", "balance"), [({}, Decimal(0)), ({"postpaid": "on"}, None)])
def test_a_new_account_has_a_wallet_unless_it_is_postpaid(
    admin_client: Client, tick: dict[str, str], balance: Decimal | None
) -> None:
    fields = {"name": "Dora Ltd", "username": "dora", **tick}
    admin_client.post("/admin/accounts/account/add/", fields)

    account = Account.objects.get(name="Dora Ltd")
    assert statements.balance(account) == balance
    assert "Dora Ltd" in text_of(admin_client.get("/admin/accounts/account/"))


def test_the_page_of_an_account_shows_budgets_and_entries(
    admin_client: Client, alice: Caller
) -> None:
    ledger.set_limit(ledger.open_budget(alice.account, **MONTHLY), 100_000)

    page = text_of(admin_client.get(f"{page_of(alice.account)}change/"))

    assert "25.00 USD" in page
    assert "100,000 tokens" in page
    assert "First credit" in page


def test_credit_is_posted_with_its_author_and_reason(admin_client: Client, alice: Caller) -> None:
    add_credit(admin_client, alice.account)

    entry = Entry.objects.latest("pk")
    assert (entry.amount, entry.reason) == (Decimal("10.5"), "Invoice 7")
    assert str(entry.created_by) == entry.author == "olga-the-operator"
    assert entry.reference == "bank-7"
    assert statements.balance(alice.account) == Decimal("35.5")
    assert "Invoice 7" in LogEntry.objects.get().change_message


def test_a_credit_form_submitted_twice_posts_one_entry(admin_client: Client, alice: Caller) -> None:
    after = Entry.objects.latest("pk").pk
    add_credit(admin_client, alice.account, after=after)

    again = add_credit(admin_client, alice.account, after=after)

    assert "Another entry was posted first" in text_of(again)
    assert statements.balance(alice.account) == Decimal("35.5")


def test_a_reference_is_posted_once_by_any_form(admin_client: Client, alice: Caller) -> None:
    add_credit(admin_client, alice.account)

    again = add_credit(admin_client, alice.account, amount="12")

    assert "The reference &#x27;bank-7&#x27; was posted before: 10.5 to Alice Ltd" in text_of(again)
    assert statements.balance(alice.account) == Decimal("35.5")


def test_only_a_top_up_needs_a_reference(admin_client: Client, alice: Caller) -> None:
    add_credit(admin_client, alice.account, kind="grant", reference="")
    add_credit(admin_client, alice.account, kind="refund", reference="")

    assert statements.balance(alice.account) == 46


@pytest.mark.parametrize(
    "fields",
    [
        {"amount": "0"},
        {"amount": "ten"},
        {"amount": "1e3"},
        {"reason": " "},
        {"kind": ""},
        {"reference": " "},
        {"reference": "x" * 101},
    ],
)
def test_an_invalid_credit_form_posts_nothing(
    admin_client: Client, alice: Caller, fields: dict[str, str]
) -> None:
    assert "errornote" in text_of(add_credit(admin_client, alice.account, **fields))
    assert Entry.objects.count() == 1


def test_credit_makes_an_account_prepaid_only_with_the_box_ticked(
    admin_client: Client,
) -> None:
    account = Account.objects.create(name="Postpaid Inc")

    assert "The account is postpaid" in text_of(add_credit(admin_client, account))
    assert statements.balance(account) is None

    add_credit(admin_client, account, open_wallet="on")
    assert statements.balance(account) == Decimal("10.5")


def test_entries_are_read_only(admin_client: Client, alice: Caller) -> None:
    entry = Entry.objects.get()

    assert "First credit" in text_of(
        admin_client.get(f"{ENTRIES}?account__exact={alice.account.pk}")
    )
    assert admin_client.get(f"{ENTRIES}add/").status_code == 403
    assert admin_client.post(f"{ENTRIES}{entry.pk}/change/", {"amount": "1"}).status_code == 403
    assert admin_client.post(f"{ENTRIES}{entry.pk}/delete/", {"post": "yes"}).status_code == 403
