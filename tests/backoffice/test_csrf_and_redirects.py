"""The admin accepts forms from its own pages only, and does not redirect to other sites."""

from typing import Any
from uuid import uuid4

import pytest
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import User
from django.test import Client

from accounts.models import Account, ApiKey
from billing.models import Budget, Entry, ModelPrice
from tests.harness.callers import Caller

PASSWORD = "a-Password-of-24-letters"
TABLES: list[Any] = [Account, ApiKey, Budget, Entry, ModelPrice, User, LogEntry]


@pytest.fixture
def browser(db: None) -> Client:
    """The client of an operator, with CSRF checks as for a real browser."""
    client = Client(enforce_csrf_checks=True)
    client.force_login(User.objects.create_superuser("olga-the-operator"))
    return client


def forms(alice: Caller) -> dict[str, dict[str, Any]]:
    """Return every form that writes, by URL, with valid values."""
    account, key = f"/admin/accounts/account/{alice.account.pk}/", alice.key.pk
    issued = {"name": "x", "scopes": ["infer"], "expires": "90", "form_nonce": str(uuid4())}
    newest = Entry.objects.latest("pk").pk
    revoke = {"action": "revoke_selected", "_selected_action": [key], "confirmed": "yes"}
    return {
        "/admin/accounts/account/add/": {"name": "New", "username": "new"},
        f"{account}issue-key/": issued,
        f"{account}add-credit/": {"amount": "1", "kind": "grant", "reason": "x", "after": newest},
        "/admin/accounts/apikey/": revoke,
        f"/admin/accounts/apikey/{key}/change/": {"name": "renamed"},
        "/admin/billing/modelprice/add/": {"model": "x", "input_per_1k": "1"},
        "/admin/billing/budget/add/": {"account": alice.account.pk, "unit": "money", "limit": "1"},
        "/admin/auth/user/add/": {"username": "eve", "password1": PASSWORD, "password2": PASSWORD},
    }


def rows() -> list[Any]:
    return [list(table.objects.order_by("pk").values()) for table in TABLES]


def test_a_form_without_a_csrf_token_writes_nothing(browser: Client, alice: Caller) -> None:
    before = rows()

    for address, fields in forms(alice).items():
        assert browser.post(address, fields).status_code == 403, address
    assert rows() == before


@pytest.mark.parametrize(
    "origin", ["https://evil.example", "http://testserver.evil.example", "null"]
)
def test_a_form_from_another_origin_writes_nothing(
    browser: Client, alice: Caller, origin: str
) -> None:
    browser.get("/admin/accounts/account/add/")
    token = {"csrfmiddlewaretoken": browser.cookies["csrftoken"].value}
    before = rows()

    for address, fields in forms(alice).items():
        response = browser.post(address, {**fields, **token}, headers={"Origin": origin})
        assert response.status_code == 403, address
    assert rows() == before


def test_the_same_forms_from_our_pages_write(browser: Client, alice: Caller) -> None:
    """Otherwise the two tests above would prove nothing."""
    browser.get("/admin/accounts/account/add/")
    token = {"csrfmiddlewaretoken": browser.cookies["csrftoken"].value}

    for address, fields in forms(alice).items():
        before = rows()
        own = {"Origin": "http://testserver"}
        assert browser.post(address, {**fields, **token}, headers=own).status_code in (200, 302)
        assert rows() != before, address


@pytest.mark.parametrize(
    "next_page",
    [
        *("https://evil.example", "//evil.example", "///evil.example", "http:evil.example"),
        *("/\\evil.example", "\\\\evil.example", "javascript:alert(1)", "https:///evil.example"),
        *(" https://evil.example", "\x08//evil.example", "https://testserver@evil.example", ""),
    ],
)
def test_login_does_not_redirect_to_another_site(db: None, next_page: str) -> None:
    User.objects.create_superuser("olga", password=PASSWORD)
    fields = {"username": "olga", "password": PASSWORD}

    by_form = Client().post("/admin/login/", {**fields, "next": next_page})
    by_address = Client().post("/admin/login/", fields, query_params={"next": next_page})

    assert by_form["Location"] == by_address["Location"] == "/admin/"


def test_login_redirects_to_the_requested_page(db: None) -> None:
    User.objects.create_superuser("olga", password=PASSWORD)
    page = "/admin/billing/modelprice/?state=past"
    fields = {"username": "olga", "password": PASSWORD, "next": page}

    assert Client().post("/admin/login/", fields)["Location"] == page
