"""Operators cannot grant themselves permissions, and users named in records are kept."""

from typing import Any

import pytest
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import Group, Permission, User
from django.db.models import ProtectedError
from django.test import Client

from accounts import customers
from accounts.models import ApiKey, Membership
from billing.models import LimitChange
from tests.harness.callers import Caller

USERS = "/admin/auth/user/"
PASSWORD = "a-Password-of-24-letters"


@pytest.fixture
def hr(db: None) -> User:
    """A staff user with permission to change users and groups."""
    user = User.objects.create_user("hr", is_staff=True)
    names = ["view_user", "change_user", "add_user", "delete_user"]
    names += ["view_group", "change_group", "add_group", "delete_group"]
    user.user_permissions.set(Permission.objects.filter(codename__in=names))
    return user


@pytest.fixture
def browser(hr: User) -> Client:
    client = Client()
    client.force_login(hr)
    return client


def change(client: Client, user: User, **fields: Any) -> Any:
    form = {"username": user.username, "is_active": "on", **fields}
    form |= {"date_joined_0": "2026-11-01", "date_joined_1": "00:00:00"}
    return client.post(f"{USERS}{user.pk}/change/", form)


def test_permission_to_change_users_does_not_grant_permissions(browser: Client, hr: User) -> None:
    bob, rights = User.objects.create_user("bob"), Permission.objects.get(codename="add_entry")
    group = Group.objects.create(name="everything")

    for user in (hr, bob):
        more = {"groups": [group.pk], "user_permissions": [rights.pk], "first_name": "Changed"}
        assert change(browser, user, is_superuser="on", is_staff="on", **more).status_code == 302

    for user in (hr, bob):
        user.refresh_from_db()
        assert user.first_name == "Changed" and not user.is_superuser
        assert not user.groups.exists() and not user.has_perm("billing.add_entry")
    assert not bob.is_staff


def test_permission_to_change_users_excludes_superusers(browser: Client) -> None:
    root = User.objects.create_superuser("root", password=PASSWORD)

    assert change(browser, root, first_name="Changed").status_code == 403
    assert browser.post(f"{USERS}{root.pk}/delete/", {"post": "yes"}).status_code == 403
    act(browser, "deactivate", root)

    root.refresh_from_db()
    assert root.is_active and root.first_name == ""


def test_permission_to_change_users_does_not_set_passwords(browser: Client, hr: User) -> None:
    root = User.objects.create_superuser("root", password=PASSWORD)
    bob = User.objects.create_user("bob")

    for user in (root, bob, hr):
        form = {"password1": PASSWORD, "password2": PASSWORD, "usable_password": "true"}
        assert browser.post(f"{USERS}{user.pk}/password/", form).status_code == 403
    assert browser.get("/admin/password_change/").status_code == 200


def test_permission_to_change_groups_does_not_grant_permissions(browser: Client) -> None:
    group = Group.objects.create(name="hr")
    rights = Permission.objects.get(codename="add_entry")

    form = {"name": "hr", "permissions": [rights.pk]}
    assert browser.post(f"/admin/auth/group/{group.pk}/change/", form).status_code == 403
    assert browser.post("/admin/auth/group/add/", form).status_code == 403
    assert not group.permissions.exists()


def test_a_superuser_grants_permissions_and_sets_passwords(admin_client: Client) -> None:
    bob = User.objects.create_user("bob")

    assert change(admin_client, bob, is_staff="on", is_superuser="on").status_code == 302
    form = {"password1": PASSWORD, "password2": PASSWORD, "usable_password": "true"}
    assert admin_client.post(f"{USERS}{bob.pk}/password/", form).status_code == 302

    bob.refresh_from_db()
    assert bob.is_superuser and bob.check_password(PASSWORD)


# --- Deleting and deactivating users --------------------------------------------------------------


def act(client: Client, action: str, *users: User) -> Any:
    form = {"action": action, "_selected_action": [user.pk for user in users]}
    return client.post(USERS, form, follow=True)


def test_a_user_named_in_the_log_is_not_deleted(admin_client: Client, alice: Caller) -> None:
    temp = User.objects.create_superuser("temp")
    client = Client()
    client.force_login(temp)
    account = {"account": alice.account.pk, "unit": "tokens", "limit": "1000"}
    client.post("/admin/billing/budget/add/", account)

    page = admin_client.post(f"{USERS}{temp.pk}/delete/", {"post": "yes"}, follow=True)
    act(admin_client, "delete_selected", temp)
    with pytest.raises(ProtectedError):
        temp.delete()
    with pytest.raises(ProtectedError):
        User.objects.filter(pk=temp.pk).delete()

    assert (
        "Temp is named in the admin&#x27;s history and cannot be deleted" in page.content.decode()
    )
    assert LogEntry.objects.filter(user=temp).exists()
    assert LimitChange.objects.latest("pk").changed_by == temp


def test_a_user_named_in_the_log_can_be_deactivated(admin_client: Client) -> None:
    temp = User.objects.create_superuser("temp")

    page = act(admin_client, "deactivate", temp)

    temp.refresh_from_db()
    assert not temp.is_active and "Deactivated: temp." in page.content.decode()
    assert LogEntry.objects.latest("pk").object_repr == "temp"


def test_a_user_not_named_in_the_log_is_deleted(admin_client: Client) -> None:
    bob = User.objects.create_user("bob")

    admin_client.post(f"{USERS}{bob.pk}/delete/", {"post": "yes"})

    assert not User.objects.filter(pk=bob.pk).exists()


def test_deleting_a_user_keeps_an_owner_for_each_account(
    admin_client: Client, alice: Caller
) -> None:
    owner, member = User.objects.create_user("dora"), User.objects.create_user("emil")
    account = customers.create("Dora Ltd", owner=owner)
    Membership.objects.create(account=account, user=member)

    page = admin_client.post(f"{USERS}{owner.pk}/delete/", {"post": "yes"}, follow=True)
    admin_client.post(f"{USERS}{member.pk}/delete/", {"post": "yes"})

    assert "Dora is the only owner of Dora Ltd." in page.content.decode()
    assert [row.user for row in account.memberships.all()] == [owner]


def test_a_key_names_the_operator_who_issued_it(admin_client: Client, alice: Caller) -> None:
    assert alice.key.author.startswith("command (") and alice.key.issued_by is None
    form = {"name": "laptop", "scopes": ["infer"], "expires": "90"}
    nonce = "0190e0d4-0000-7000-8000-000000000001"

    admin_client.post(
        f"/admin/accounts/account/{alice.account.pk}/issue-key/", {**form, "form_nonce": nonce}
    )

    key = ApiKey.objects.latest("pk")
    assert (key.author, str(key.issued_by)) == ("olga-the-operator", "olga-the-operator")
    page = admin_client.get(f"/admin/accounts/apikey/{key.pk}/change/").content.decode()
    assert "olga-the-operator" in page
