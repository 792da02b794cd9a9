"""The back-office's pages for prices, money and usage."""

import re
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import User
from django.test import Client
from django.utils import timezone

from accounts.models import Account
from billing import ledger, price_book, statements
from billing.models import Budget, Entry, LimitChange, ModelPrice
from tests.fakes.ollama import FakeOllama
from tests.harness.callers import Caller, set_price

OFFICE = "/admin/billing/"
PRICES, BUDGETS, ENTRIES = f"{OFFICE}modelprice/", f"{OFFICE}budget/", f"{OFFICE}entry/"
USAGE, HOLDS, DAYS = f"{OFFICE}tokenusage/", f"{OFFICE}hold/", f"{OFFICE}usagedaily/"
MONTHLY: dict[str, Any] = {"unit": Budget.Unit.TOKENS, "window": Budget.Window.MONTH}


def text_of(page: Any) -> str:
    assert page.status_code == 200
    text: str = page.content.decode()
    return text


# --- Prices -------------------------------------------------------------------------------------


def schedule(client: Client, **fields: str) -> Any:
    given = {"model": "LLAMA3", "input_per_1k": "0.002", "output_per_1k": "", **fields}
    return client.post(f"{PRICES}add/", given)


def test_a_price_is_scheduled_under_its_canonical_name_and_by_whom(admin_client: Client) -> None:
    answer = schedule(admin_client, output_per_1k="0.004")

    price = ModelPrice.objects.get()
    assert answer.status_code == 302
    assert price.model == "llama3:latest"
    assert (price.prompt_price, price.completion_price) == (2_000_000, 4_000_000)
    assert str(price.created_by) == "olga-the-operator"
    assert price_book.effective_price("llama3:latest", timezone.now()) == price


def test_output_costs_as_input_unless_said(admin_client: Client) -> None:
    schedule(admin_client)

    assert ModelPrice.objects.get().completion_price == 2_000_000


def test_a_price_may_begin_later(admin_client: Client) -> None:
    schedule(admin_client, effective_from_0="2190-01-31", effective_from_1="08:00:00")

    assert ModelPrice.objects.get().effective_from == datetime(2190, 1, 31, 8, tzinfo=UTC)
    assert "scheduled" in text_of(admin_client.get(f"{PRICES}?state=scheduled&q=llama3"))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model": "no!model"}, "invalid model name"),
        ({"input_per_1k": "0,002"}, "is not a price"),
        ({"input_per_1k": "0.0000000001"}, "more than 9 decimals"),
        ({"output_per_1k": "-1"}, "out of range"),
        ({"effective_from_0": "2001-01-01", "effective_from_1": "00:00"}, "start in the past"),
    ],
)
def test_what_the_price_book_refuses_is_said_on_the_form(
    admin_client: Client, fields: dict[str, str], message: str
) -> None:
    assert message in text_of(schedule(admin_client, **fields))
    assert not ModelPrice.objects.exists()


def test_the_list_filters_past_and_effective_prices(admin_client: Client) -> None:
    set_price("llama3", "0.002")
    set_price("llama3", "0.003")

    past = text_of(admin_client.get(f"{PRICES}?state=past"))
    effective = text_of(admin_client.get(f"{PRICES}?state=effective"))

    assert ">0.002<" in past and ">0.003<" not in past
    assert ">0.003<" in effective and ">3.00<" in effective and ">0.002<" not in effective


def test_a_price_can_only_be_read_and_begins_the_form_of_its_next_version(
    admin_client: Client, priced: ModelPrice
) -> None:
    page = text_of(admin_client.get(f"{PRICES}{priced.pk}/change/"))

    assert 'name="_save"' not in page
    link = re.findall(r'href="([^"]+/add/[^"]+)"', page)[0].replace("&amp;", "&")
    form = text_of(admin_client.get(link))
    assert 'value="llama3:latest"' in form
    assert 'value="0.002"' in form and 'value="0.004"' in form
    assert admin_client.post(f"{PRICES}{priced.pk}/delete/", {"post": "yes"}).status_code == 403


def test_installed_models_without_a_price_wait_for_one(
    admin_client: Client, ollama: FakeOllama
) -> None:
    set_price("llama3", "0.002")

    page = text_of(admin_client.get(PRICES))

    waiting = re.findall(r"/add/\?model=([^\"]+)", page)
    assert waiting
    assert "llama3%3Alatest" not in waiting


def test_the_waiting_box_says_so_when_ollama_cannot_be_reached(admin_client: Client) -> None:
    assert "Ollama cannot be reached" in text_of(admin_client.get(PRICES))


def test_an_empty_price_book_says_how_to_fill_it(admin_client: Client) -> None:
    assert "manage.py seed_prices" in text_of(admin_client.get(PRICES))


# --- Accounts and their money -------------------------------------------------------------------


def page_of(account: Account) -> str:
    return f"/admin/accounts/account/{account.pk}/"


def add_credit(client: Client, account: Account, **fields: Any) -> Any:
    newest = Entry.objects.filter(account=account).order_by("-pk").first()
    after = newest.pk if newest else 0
    given = {"amount": "10.5", "kind": "top_up", "reason": "Invoice 7", "reference": "bank-7"}
    return client.post(f"{page_of(account)}add-credit/", given | {"after": after} | fields)


@pytest.mark.parametrize(("tick", "balance"), [({}, Decimal(0)), ({"postpaid": "on"}, None)])
def test_an_account_opens_with_a_wallet_unless_postpaid(
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


def test_credit_is_posted_once_with_who_and_why(admin_client: Client, alice: Caller) -> None:
    add_credit(admin_client, alice.account)

    entry = Entry.objects.latest("pk")
    assert (entry.amount, entry.reason) == (Decimal("10.5"), "Invoice 7")
    assert str(entry.created_by) == entry.author == "olga-the-operator"
    assert entry.reference == "bank-7"
    assert statements.balance(alice.account) == Decimal("35.5")
    assert "Invoice 7" in LogEntry.objects.get().change_message


def test_a_form_sent_twice_does_not_pay_twice(admin_client: Client, alice: Caller) -> None:
    after = Entry.objects.latest("pk").pk
    add_credit(admin_client, alice.account, after=after)

    again = add_credit(admin_client, alice.account, after=after)

    assert "Another entry came first" in text_of(again)
    assert statements.balance(alice.account) == Decimal("35.5")


def test_a_payment_is_posted_once_whatever_form_it_comes_in(
    admin_client: Client, alice: Caller
) -> None:
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
def test_credit_with_a_mistake_moves_nothing(
    admin_client: Client, alice: Caller, fields: dict[str, str]
) -> None:
    assert "errornote" in text_of(add_credit(admin_client, alice.account, **fields))
    assert Entry.objects.count() == 1


def test_credit_makes_a_postpaid_account_prepaid_only_when_that_is_ticked(
    admin_client: Client,
) -> None:
    account = Account.objects.create(name="Postpaid Inc")

    assert "It is postpaid" in text_of(add_credit(admin_client, account))
    assert statements.balance(account) is None

    add_credit(admin_client, account, open_wallet="on")
    assert statements.balance(account) == Decimal("10.5")


def test_entries_can_only_be_read(admin_client: Client, alice: Caller) -> None:
    entry = Entry.objects.get()

    assert "First credit" in text_of(
        admin_client.get(f"{ENTRIES}?account__exact={alice.account.pk}")
    )
    assert admin_client.get(f"{ENTRIES}add/").status_code == 403
    assert admin_client.post(f"{ENTRIES}{entry.pk}/change/", {"amount": "1"}).status_code == 403
    assert admin_client.post(f"{ENTRIES}{entry.pk}/delete/", {"post": "yes"}).status_code == 403


def test_staff_without_rights_see_and_move_no_money(alice: Caller) -> None:
    client = Client()
    client.force_login(User.objects.create_user("clerk", is_staff=True))

    for address in (
        PRICES,
        BUDGETS,
        ENTRIES,
        USAGE,
        HOLDS,
        DAYS,
        f"{PRICES}add/",
        f"{BUDGETS}add/",
    ):
        assert client.get(address).status_code == 403
    assert add_credit(client, alice.account).status_code == 403
    assert schedule(client).status_code == 403
    assert Entry.objects.count() == 1


# --- Caps ---------------------------------------------------------------------------------------


def test_a_cap_is_added_for_an_account_and_for_a_key(admin_client: Client, alice: Caller) -> None:
    account = alice.account.pk
    admin_client.post(f"{BUDGETS}add/", {"account": account, "unit": "tokens", "limit": "1000"})
    fields = {"account": account, "key": alice.key.pk, "unit": "money", "limit": "0.5"}
    admin_client.post(f"{BUDGETS}add/", fields)

    tokens = Budget.objects.get(account=account, key=None, unit="tokens")
    money = Budget.objects.get(key=alice.key)
    assert (tokens.limit, tokens.window) == (1000, "month")
    assert (money.limit, money.window) == (500_000_000_000, "month")
    assert "0.50 USD" in text_of(admin_client.get(BUDGETS))


@pytest.mark.parametrize("limit", ["", "-1", "1.5", "many"])
def test_a_cap_of_tokens_is_a_whole_number(admin_client: Client, alice: Caller, limit: str) -> None:
    fields = {"account": alice.account.pk, "unit": "tokens", "limit": limit}

    assert "errornote" in text_of(admin_client.post(f"{BUDGETS}add/", fields))
    assert Budget.objects.count() == 1


def test_a_cap_is_not_for_a_key_of_somebody_else(
    admin_client: Client, alice: Caller, charlie: Caller
) -> None:
    fields = {"account": alice.account.pk, "unit": "tokens", "limit": "1", "key": charlie.key.pk}

    assert "another account" in text_of(admin_client.post(f"{BUDGETS}add/", fields))


def test_changing_a_limit_leaves_what_requests_move_alone(
    admin_client: Client, alice: Caller
) -> None:
    cap = ledger.open_budget(alice.account, **MONTHLY)
    cap.periods.update(spent=30, held=12)

    fields = {"new_limit": "5000", "spent": "0", "held": "0", "limit": "1"}
    admin_client.post(f"{BUDGETS}{cap.pk}/change/", fields)

    cap.refresh_from_db()
    month = cap.periods.get()
    assert (cap.limit, month.spent, month.held) == (5000, 30, 12)
    assert LogEntry.objects.get().change_message == "Limit: 5,000 tokens."


def test_every_limit_says_who_set_it(admin_client: Client, alice: Caller) -> None:
    admin_client.post(
        f"{BUDGETS}add/", {"account": alice.account.pk, "unit": "tokens", "limit": "1000"}
    )
    cap = Budget.objects.get(unit="tokens")
    admin_client.post(f"{BUDGETS}{cap.pk}/change/", {"new_limit": "5000"})
    admin_client.post("/admin/accounts/account/add/", {"name": "Dora Ltd", "username": "dora"})

    changes = LimitChange.objects.filter(budget=cap).order_by("pk")
    assert list(changes.values_list("old", "new")) == [(None, 0), (0, 1000), (1000, 5000)]
    assert {change.author for change in changes} == {"olga-the-operator"}
    assert LimitChange.objects.latest("pk").author == "olga-the-operator"  # Of Dora's wallet.
    page = text_of(admin_client.get("/admin/billing/limitchange/"))
    assert "1,000 tokens" in page and "5,000 tokens" in page and "olga-the-operator" in page


def test_the_limit_of_a_wallet_cannot_be_edited(admin_client: Client, alice: Caller) -> None:
    address = f"{BUDGETS}{alice.wallet.pk}/change/"

    assert "new_limit" not in text_of(admin_client.get(address))
    assert admin_client.post(address, {"new_limit": "1000000"}).status_code == 403
    assert statements.balance(alice.account) == 25


# --- Every list ---------------------------------------------------------------------------------


@pytest.mark.parametrize("address", [BUDGETS, ENTRIES, USAGE, HOLDS, DAYS])
def test_every_empty_list_says_what_fills_it(admin_client: Client, address: str) -> None:
    page = text_of(admin_client.get(address))

    assert re.search(r'class="nothing">\s*\w+', page)
    assert "There is nothing here yet" not in page
