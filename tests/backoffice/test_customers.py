"""Creating, changing and suspending accounts in the back-office."""

from typing import Any

import pytest
from django.contrib.admin.models import LogEntry
from django.test import Client
from pytest_django import DjangoAssertNumQueries

from accounts import customers, keys
from accounts.models import Account, ApiKey, Membership
from tests.harness.backoffice import (
    ACCOUNTS,
    KEYS,
    issue,
)
from tests.harness.callers import Caller, new_caller


def test_the_number_of_queries_of_the_list_is_constant(
    admin_client: Client, alice: Caller, django_assert_max_num_queries: DjangoAssertNumQueries
) -> None:
    for number in range(20):
        new_caller(f"Customer{number}")

    with django_assert_max_num_queries(6):
        page = admin_client.get(ACCOUNTS)

    assert b"Customer19 Ltd" in page.content
    assert b"25.00" in page.content


def test_the_list_counts_valid_keys(admin_client: Client, alice: Caller, bob: Caller) -> None:
    keys.revoke(bob.key.pk)

    assert b'field-number_keys">1<' in admin_client.get(ACCOUNTS).content


def test_an_account_is_created_with_a_new_owner(admin_client: Client) -> None:
    admin_client.post(
        f"{ACCOUNTS}add/", {"name": "Dora Ltd", "username": "dora", "email": "d@x.org"}
    )

    account = Account.objects.get(name="Dora Ltd")
    owner = customers.owner_of(account)
    assert (owner.username, owner.email) == ("dora", "d@x.org")
    assert not owner.has_usable_password()


def test_an_account_is_created_with_an_existing_user(admin_client: Client, alice: Caller) -> None:
    admin_client.post(f"{ACCOUNTS}add/", {"name": "Second Ltd", "user": alice.key.user.pk})

    assert customers.owner_of(Account.objects.get(name="Second Ltd")) == alice.key.user


@pytest.mark.parametrize(
    "fields",
    [
        {"name": "Nobody Ltd"},
        {"name": "Alice Ltd", "username": "x"},
        {"name": "Twice Ltd", "username": "alice"},
        {"name": "Odd Ltd", "username": "no spaces please"},
    ],
)
def test_an_account_needs_a_unique_name_and_one_owner(
    admin_client: Client, alice: Caller, fields: dict[str, str]
) -> None:
    page = admin_client.post(f"{ACCOUNTS}add/", fields)

    assert page.status_code == 200
    assert b"errornote" in page.content
    assert Account.objects.count() == 1


def test_accounts_and_keys_cannot_be_deleted(admin_client: Client, alice: Caller) -> None:
    assert (
        admin_client.post(f"{ACCOUNTS}{alice.account.pk}/delete/", {"post": "yes"}).status_code
        == 403
    )
    assert admin_client.post(f"{KEYS}{alice.key.pk}/delete/", {"post": "yes"}).status_code == 403
    for page in (ACCOUNTS, KEYS):
        assert b"delete_selected" not in admin_client.get(page).content


def test_keys_of_a_suspended_account_are_rejected(admin_client: Client, alice: Caller) -> None:
    chosen = {"action": "suspend", "_selected_action": [alice.account.pk]}
    page = admin_client.post(ACCOUNTS, chosen)
    text = page.content.decode()
    assert "Alice Ltd: 1 valid key" in text and "cancelled within a second" in text
    assert alice.get("/usage").status_code == 200

    admin_client.post(ACCOUNTS, {**chosen, "confirmed": "yes"})
    assert alice.get("/usage").status_code == 401
    assert "account suspended" in admin_client.get(KEYS).content.decode()
    assert b'field-number_keys">0<' in admin_client.get(ACCOUNTS).content

    admin_client.post(ACCOUNTS, {**chosen, "action": "activate"})
    assert alice.get("/usage").status_code == 200
    assert LogEntry.objects.filter(object_repr="Alice Ltd").count() == 2


def members(caller: Caller, **fields: str) -> dict[str, Any]:
    membership = caller.account.memberships.get()
    prefix = "memberships-"
    return {
        "name": caller.account.name,
        "status": "active",
        f"{prefix}TOTAL_FORMS": "1",
        f"{prefix}INITIAL_FORMS": "1",
        f"{prefix}0-id": membership.pk,
        f"{prefix}0-account": caller.account.pk,
        f"{prefix}0-user": membership.user_id,
        f"{prefix}0-role": "owner",
        **{f"{prefix}0-{name}": value for name, value in fields.items()},
    }


@pytest.mark.parametrize("change", [{"DELETE": "on"}, {"role": "member"}])
def test_the_last_owner_of_an_account_cannot_be_removed(
    admin_client: Client, alice: Caller, change: dict[str, str]
) -> None:
    page = admin_client.post(f"{ACCOUNTS}{alice.account.pk}/change/", members(alice, **change))

    assert b"An account needs an owner." in page.content
    assert customers.owner_of(alice.account)


def test_removing_a_member_warns_of_keys_that_stay_valid(
    admin_client: Client, alice: Caller, bob: Caller
) -> None:
    mine, his = alice.account.memberships.order_by("pk")
    fields = members_of(alice, {mine: {}, his: {"DELETE": "on", "role": "member"}})

    page = admin_client.post(f"{ACCOUNTS}{alice.account.pk}/change/", fields, follow=True)

    assert "Keys issued for bob that are still valid" in page.content.decode()
    assert alice.account.memberships.count() == 1 and bob.get("/usage").status_code == 200


def members_of(caller: Caller, rows: dict[Membership, dict[str, str]]) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "name": caller.account.name,
        "memberships-TOTAL_FORMS": len(rows),
        "memberships-INITIAL_FORMS": len(rows),
    }
    for number, (row, more) in enumerate(rows.items()):
        member = {
            "id": row.pk,
            "account": row.account_id,
            "user": row.user_id,
            "role": row.role,
        }
        for name, value in {**member, **more}.items():
            fields[f"memberships-{number}-{name}"] = value
    return fields


def test_the_page_of_a_suspended_account_has_a_button_to_activate_it(
    admin_client: Client, alice: Caller
) -> None:
    page = f"{ACCOUNTS}{alice.account.pk}/change/"
    assert ">Suspend</button>" in admin_client.get(page).content.decode()

    Account.objects.update(status="suspended")

    assert ">Activate</button>" in admin_client.get(page).content.decode()


UNSEEN = {
    "bidi": "Acme\u202e",
    "zero width": "Ac\u200bme",
    "control": "Ac\x07me",
    "line": "A\u2028b",
}


@pytest.mark.parametrize("name", UNSEEN.values(), ids=UNSEEN)
def test_a_name_with_an_invisible_character_is_rejected(
    admin_client: Client, alice: Caller, name: str
) -> None:
    page = admin_client.post(f"{ACCOUNTS}add/", {"name": name, "username": "new"})
    assert "invisible" in page.content.decode() and Account.objects.count() == 1

    renamed = {**members(alice), "name": name}
    page = admin_client.post(f"{ACCOUNTS}{alice.account.pk}/change/", renamed)
    assert "invisible" in page.content.decode()
    page = issue(admin_client, alice.account, name=name)
    assert "invisible" in page.content.decode() and ApiKey.objects.count() == 1


def test_no_two_account_names_differ_in_case_alone(admin_client: Client, alice: Caller) -> None:
    page = admin_client.post(f"{ACCOUNTS}add/", {"name": "ALICE ltd", "username": "new"})
    assert "There is an account of this name already: Alice Ltd." in page.content.decode()

    Account.objects.create(name="Other")
    renamed = {**members(alice), "name": "OTHER"}
    page = admin_client.post(f"{ACCOUNTS}{alice.account.pk}/change/", renamed)
    assert "There is an account of this name already" in page.content.decode()
