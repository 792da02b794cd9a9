"""Currencies whose major unit is worth little have nine decimals, so that amounts fit 64 bits."""

import io
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.test import Client
from django.utils import timezone

from accounts.models import Account
from billing import ledger, statements
from billing.checks import check_configuration
from billing.models import BillingConfig, Budget, Entry, ModelPrice, UsageDaily
from billing.money import MAX_LIMIT, MAX_UNITS, ExactSum, from_units, scale_of, to_units
from billing.pricing import InvalidPrice, per_1k, per_token
from gateway.metering import NoCredit
from tests.billing.test_ledger import books_balance, finish, reserve
from tests.harness.callers import Caller, new_caller, set_price

NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)
WITHOUT_MINOR_UNIT = {"BIF", "CLP", "GNF", "JPY", "KMF", "KRW", "PYG", "UGX", "VND", "XAF", "XOF"}


@pytest.fixture
def vnd(db: None, settings: Any) -> None:
    settings.CURRENCY = "VND"
    BillingConfig.objects.update(currency="VND", scale=9)


def run(*command: str) -> str:
    out = io.StringIO()
    call_command(*command, stdout=out)
    return out.getvalue()


def test_a_currency_has_twelve_or_nine_decimals() -> None:
    assert {scale_of(code) for code in ("USD", "EUR", "GBP", "CHF", "KWD", "CNY")} == {12}
    assert {scale_of(code) for code in (*WITHOUT_MINOR_UNIT, "IDR", "INR")} == {9}


def test_an_amount_in_yen_has_nine_decimals(settings: Any) -> None:
    settings.CURRENCY = "JPY"

    assert to_units("1.000000001") == 10**9 + 1
    assert to_units("9000000000") == MAX_LIMIT
    assert f"{from_units(1):f}" == "0.000000001"
    with pytest.raises(ValueError, match="at most 9 decimals"):
        to_units("0.0000000001")


def test_a_price_in_dong_has_six_decimals(settings: Any) -> None:
    settings.CURRENCY = "VND"

    assert per_1k(per_token("52500.5")) == Decimal("52500.5")
    with pytest.raises(InvalidPrice, match="from 0 to 100000"):
        per_token("100001")
    with pytest.raises(InvalidPrice, match="more than 6 decimals"):
        per_token("0.0000001")


def test_a_database_in_dong_passes_the_check(vnd: None) -> None:
    assert check_configuration() == []


def test_a_customer_in_dong_pays_large_amounts_and_uses_them(vnd: None) -> None:
    run("create_account", "Big", "--credit", "5000000000")
    assert "now has 5000300000" in run("grant", "Big", "300000", "--reason", "Second invoice")

    charlie = new_caller("Charlie", credit="26000000")
    price = set_price("llama3", "50", "150")
    row = finish(reserve(charlie, price, prompt=10_000, completion=2_000), 8_000, 1_000)

    assert row.cost == Decimal(550)
    assert statements.balance(charlie.account) == 25_999_450
    assert books_balance()


def test_the_bundled_prices_are_valid_in_dong(vnd: None) -> None:
    assert "prices added" in run("seed_prices")


# --- The limits of 64 bits, in any currency -------------------------------------------------------


def test_an_entry_that_exceeds_the_limits_of_a_wallet_is_rejected_with_the_limit(db: None) -> None:
    run("create_account", "Big", "--credit", "8900000")

    with pytest.raises(CommandError, match="ends at 9,000,000"):
        run("grant", "Big", "300000", "--reason", "Too much")
    run("grant", "Big", "-9000000", "--reason", "Back to us", "--force")
    with pytest.raises(CommandError, match="ends at -223,372"):
        run("grant", "Big", "-9000000", "--reason", "Back to us", "--force")


def test_a_wallet_near_its_limit_rejects_the_next_request(charlie: Caller) -> None:
    price = set_price("llama3", "100")
    Budget.objects.filter(pk=charlie.wallet.pk).update(limit=MAX_UNITS, spent=to_units("9200000"))

    with pytest.raises(NoCredit):
        reserve(charlie, price, prompt=1_000_000)


def test_a_month_whose_cost_exceeds_64_bits_is_summed_exactly(
    charlie: Caller, priced: ModelPrice
) -> None:
    spend(charlie, priced, 3, Decimal(4_000_000))

    usage, history = charlie.get("/usage"), charlie.get("/usage/history", group_by="key")

    assert (usage.status_code, usage.json()["billed_amount_usd"]) == (200, "12000000")
    assert (history.status_code, history.json()["total"]["cost"]) == (200, "12000000")


def test_a_budget_whose_past_usage_exceeds_64_bits_is_rejected(
    charlie: Caller, priced: ModelPrice, admin_client: Client
) -> None:
    postpaid = Account.objects.create(name="Postpaid Ltd")
    spend(charlie, priced, 3, Decimal(4_000_000), account=postpaid)

    with pytest.raises(CommandError, match="more than a budget can count"):
        run("grant", "Postpaid Ltd", "5", "--reason", "First")
    fields = {"account": postpaid.pk, "unit": "money", "limit": "5"}
    page = admin_client.post("/admin/billing/budget/add/", fields)

    assert page.status_code == 200 and b"more than a budget can count" in page.content
    assert not Budget.objects.filter(account=postpaid).exists()
    assert not Entry.objects.filter(account=postpaid).exists()


def test_a_cap_above_the_highest_limit_is_rejected(charlie: Caller, admin_client: Client) -> None:
    fields = {"account": charlie.account.pk, "unit": "money", "limit": "9000001"}

    page = admin_client.post("/admin/billing/budget/add/", fields)

    assert page.status_code == 200 and b"Enter a limit from 0 to 9,000,000." in page.content


def spend(
    caller: Caller, price: ModelPrice, rows: int, cost: Decimal, account: Account | None = None
) -> None:
    """Create roll-up lines of this month, each of another model."""
    for number in range(rows):
        UsageDaily.objects.create(
            account=account or caller.account,
            day=timezone.now().date(),
            key=caller.key,
            model=f"model-{number}",
            price=price,
            requests=1,
            cost=cost,
        )


def test_a_sum_of_negative_amounts_is_exact(charlie: Caller) -> None:
    for amount in ("-0.000000000001", "-25.5", "3"):
        ledger.post(charlie.account, Decimal(amount), kind=Entry.Kind.GRANT, reason="test")

    entries = Entry.objects.filter(account=charlie.account)
    assert entries.aggregate(sum=ExactSum("amount"))["sum"] == Decimal("2.499999999999")
