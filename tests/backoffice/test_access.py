"""Who may see and change what in the back-office."""

import re

from django.contrib import admin
from django.contrib.auth.models import User
from django.test import Client

from accounts.models import ApiKey
from billing.models import Entry
from tests.harness.backoffice import (
    ACCOUNTS,
    BUDGETS,
    DAYS,
    ENTRIES,
    HOLDS,
    KEYS,
    PRICES,
    USAGE,
    add_credit,
    issue,
    schedule,
    staff_client,
)
from tests.harness.callers import Caller


def test_an_api_key_does_not_log_in_to_the_admin(alice: Caller) -> None:
    response = alice.get("/admin/")

    assert response.status_code == 302
    assert response["Location"].startswith("/admin/login/")


def test_an_admin_session_is_rejected_by_the_api(admin_client: Client) -> None:
    assert admin_client.get("/admin/").status_code == 200
    assert admin_client.get("/usage").status_code == 401


def test_staff_without_permissions_get_a_403(alice: Caller) -> None:
    client = staff_client()

    assert client.get(ACCOUNTS).status_code == 403
    assert client.get(KEYS).status_code == 403
    assert issue(client, alice.account).status_code == 403
    assert client.post(f"{ACCOUNTS}add/", {"name": "New", "username": "new"}).status_code == 403


def test_permission_to_change_accounts_does_not_allow_issuing_keys(alice: Caller) -> None:
    client = staff_client("view_account", "change_account")

    page = client.get(f"{ACCOUNTS}{alice.account.pk}/change/")

    assert page.status_code == 200
    assert b"issue-key" not in page.content
    assert issue(client, alice.account).status_code == 403
    assert ApiKey.objects.count() == 1


def test_the_menu_is_grouped_by_purpose_without_knox(admin_client: Client) -> None:
    page = admin_client.get("/admin/").content.decode()

    captions = re.findall(r'<span class="section">(\w+)</span>', page)
    assert captions == ["Customers", "Money", "Usage", "Operators"]
    assert not [model for model in admin.site._registry if model._meta.app_label == "knox"]


def test_staff_without_permissions_cannot_see_or_change_money(alice: Caller) -> None:
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
