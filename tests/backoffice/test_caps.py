"""Adding monthly caps and changing their limits."""

from typing import Any

import pytest
from django.contrib.admin.models import LogEntry
from django.test import Client

from billing import ledger, statements
from billing.models import Budget, LimitChange
from tests.harness.backoffice import (
    BUDGETS,
    text_of,
)
from tests.harness.callers import Caller

MONTHLY: dict[str, Any] = {"unit": Budget.Unit.TOKENS, "window": Budget.Window.MONTH}


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
def test_a_token_cap_must_be_a_whole_number(
    admin_client: Client, alice: Caller, limit: str
) -> None:
    fields = {"account": alice.account.pk, "unit": "tokens", "limit": limit}

    assert "errornote" in text_of(admin_client.post(f"{BUDGETS}add/", fields))
    assert Budget.objects.count() == 1


def test_a_cap_for_a_key_of_another_account_is_rejected(
    admin_client: Client, alice: Caller, charlie: Caller
) -> None:
    fields = {"account": alice.account.pk, "unit": "tokens", "limit": "1", "key": charlie.key.pk}

    assert "another account" in text_of(admin_client.post(f"{BUDGETS}add/", fields))


def test_changing_a_limit_leaves_spent_and_held_unchanged(
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


def test_every_limit_change_names_its_author(admin_client: Client, alice: Caller) -> None:
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
