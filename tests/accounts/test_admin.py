"""The back-office's pages for accounts and keys, and who may see them."""

import re
from typing import Any
from uuid import uuid4

import pytest
from django.contrib import admin
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import Permission, User
from django.contrib.sessions.models import Session
from django.test import Client
from django.utils import timezone
from pytest_django import DjangoAssertNumQueries

from accounts import customers, keys
from accounts.models import Account, ApiKey, Membership
from tests.harness.callers import Caller, new_caller, set_price

ACCOUNTS, KEYS = "/admin/accounts/account/", "/admin/accounts/apikey/"
SECRET = re.compile(r"olg_[0-9a-f]{64}")


def clerk(*permissions: str) -> Client:
    """A member of staff with these rights alone."""
    user = User.objects.create_user("clerk", is_staff=True)
    user.user_permissions.set(Permission.objects.filter(codename__in=permissions))
    client = Client()
    client.force_login(user)
    return client


def form(**fields: Any) -> dict[str, Any]:
    return {
        "name": "laptop",
        "scopes": ["infer", "usage"],
        "allowed_models": "",
        "expires": "90",
        "form_nonce": str(uuid4()),
        **fields,
    }


def issue(client: Client, account: Account, **fields: Any) -> Any:
    return client.post(f"{ACCOUNTS}{account.pk}/issue-key/", form(**fields))


# --- Who may come in ----------------------------------------------------------------------------


def test_a_key_opens_no_page_of_the_back_office(alice: Caller) -> None:
    answer = alice.get("/admin/")

    assert answer.status_code == 302
    assert answer["Location"].startswith("/admin/login/")


def test_a_session_of_the_back_office_opens_no_api(admin_client: Client) -> None:
    assert admin_client.get("/admin/").status_code == 200
    assert admin_client.get("/usage").status_code == 401


def test_staff_without_rights_are_refused(alice: Caller) -> None:
    client = clerk()

    assert client.get(ACCOUNTS).status_code == 403
    assert client.get(KEYS).status_code == 403
    assert issue(client, alice.account).status_code == 403
    assert client.post(f"{ACCOUNTS}add/", {"name": "New", "username": "new"}).status_code == 403


def test_who_may_change_accounts_may_not_issue_keys_by_that(alice: Caller) -> None:
    client = clerk("view_account", "change_account")

    page = client.get(f"{ACCOUNTS}{alice.account.pk}/change/")

    assert page.status_code == 200
    assert b"issue-key" not in page.content
    assert issue(client, alice.account).status_code == 403
    assert ApiKey.objects.count() == 1


def test_the_menu_is_sorted_by_purpose_and_knows_nothing_of_knox(admin_client: Client) -> None:
    page = admin_client.get("/admin/").content.decode()

    captions = re.findall(r'<span class="section">(\w+)</span>', page)
    assert captions == ["Customers", "Money", "Usage", "Operators"]
    assert not [model for model in admin.site._registry if model._meta.app_label == "knox"]


# --- Accounts -----------------------------------------------------------------------------------


def test_the_list_takes_the_same_number_of_queries_however_long_it_is(
    admin_client: Client, alice: Caller, django_assert_max_num_queries: DjangoAssertNumQueries
) -> None:
    for number in range(20):
        new_caller(f"Customer{number}")

    with django_assert_max_num_queries(6):
        page = admin_client.get(ACCOUNTS)

    assert b"Customer19 Ltd" in page.content
    assert b"25.00" in page.content


def test_the_list_counts_keys_in_force_only(
    admin_client: Client, alice: Caller, bob: Caller
) -> None:
    keys.revoke(bob.key.pk)

    assert b'field-figure_keys">1<' in admin_client.get(ACCOUNTS).content


def test_an_account_is_added_with_a_new_owner(admin_client: Client) -> None:
    admin_client.post(
        f"{ACCOUNTS}add/", {"name": "Dora Ltd", "username": "dora", "email": "d@x.org"}
    )

    account = Account.objects.get(name="Dora Ltd")
    owner = customers.owner_of(account)
    assert (owner.username, owner.email) == ("dora", "d@x.org")
    assert not owner.has_usable_password()


def test_an_account_is_added_with_somebody_who_is_here(admin_client: Client, alice: Caller) -> None:
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
def test_an_account_needs_a_name_of_its_own_and_one_owner(
    admin_client: Client, alice: Caller, fields: dict[str, str]
) -> None:
    page = admin_client.post(f"{ACCOUNTS}add/", fields)

    assert page.status_code == 200
    assert b"errornote" in page.content
    assert Account.objects.count() == 1


def test_nobody_can_delete_an_account_or_a_key(admin_client: Client, alice: Caller) -> None:
    assert (
        admin_client.post(f"{ACCOUNTS}{alice.account.pk}/delete/", {"post": "yes"}).status_code
        == 403
    )
    assert admin_client.post(f"{KEYS}{alice.key.pk}/delete/", {"post": "yes"}).status_code == 403
    for page in (ACCOUNTS, KEYS):
        assert b"delete_selected" not in admin_client.get(page).content


def test_suspending_an_account_shuts_its_keys_out(admin_client: Client, alice: Caller) -> None:
    chosen = {"action": "suspend", "_selected_action": [alice.account.pk]}
    page = admin_client.post(ACCOUNTS, chosen)
    asked = page.content.decode()
    assert "Alice Ltd: 1 working key" in asked and "end within a second" in asked
    assert alice.get("/usage").status_code == 200

    admin_client.post(ACCOUNTS, {**chosen, "confirmed": "yes"})
    assert alice.get("/usage").status_code == 401
    assert "account suspended" in admin_client.get(KEYS).content.decode()
    assert b'field-figure_keys">0<' in admin_client.get(ACCOUNTS).content

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
def test_an_account_keeps_an_owner(
    admin_client: Client, alice: Caller, change: dict[str, str]
) -> None:
    page = admin_client.post(f"{ACCOUNTS}{alice.account.pk}/change/", members(alice, **change))

    assert b"An account needs an owner." in page.content
    assert customers.owner_of(alice.account)


def test_who_is_removed_leaves_keys_that_work_and_the_page_says_so(
    admin_client: Client, alice: Caller, bob: Caller
) -> None:
    mine, his = alice.account.memberships.order_by("pk")
    fields = members_of(alice, {mine: {}, his: {"DELETE": "on", "role": "member"}})

    page = admin_client.post(f"{ACCOUNTS}{alice.account.pk}/change/", fields, follow=True)

    assert "Keys issued for bob that still work" in page.content.decode()
    assert alice.account.memberships.count() == 1 and bob.get("/usage").status_code == 200


def members_of(caller: Caller, rows: dict[Membership, dict[str, str]]) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "name": caller.account.name,
        "memberships-TOTAL_FORMS": len(rows),
        "memberships-INITIAL_FORMS": len(rows),
    }
    for number, (row, more) in enumerate(rows.items()):
        said = {"id": row.pk, "account": row.account_id, "user": row.user_id, "role": row.role}
        for name, value in {**said, **more}.items():
            fields[f"memberships-{number}-{name}"] = value
    return fields


def test_a_suspended_account_is_activated_by_its_own_page(
    admin_client: Client, alice: Caller
) -> None:
    page = f"{ACCOUNTS}{alice.account.pk}/change/"
    assert ">Suspend</button>" in admin_client.get(page).content.decode()

    Account.objects.update(status="suspended")

    assert ">Activate</button>" in admin_client.get(page).content.decode()


def test_a_revocation_says_what_happens_to_running_responses(
    admin_client: Client, alice: Caller
) -> None:
    chosen = {"action": "revoke_selected", "_selected_action": [alice.key.pk]}

    page = admin_client.post(KEYS, chosen).content.decode()

    assert "end within a second" in page and "as usual" not in page


UNSEEN = {
    "bidi": "Acme\u202e",
    "zero width": "Ac\u200bme",
    "control": "Ac\x07me",
    "line": "A\u2028b",
}


@pytest.mark.parametrize("name", UNSEEN.values(), ids=UNSEEN)
def test_a_name_with_a_character_that_cannot_be_seen_is_refused(
    admin_client: Client, alice: Caller, name: str
) -> None:
    page = admin_client.post(f"{ACCOUNTS}add/", {"name": name, "username": "new"})
    assert "invisible" in page.content.decode() and Account.objects.count() == 1

    renamed = {**members(alice), "name": name}
    page = admin_client.post(f"{ACCOUNTS}{alice.account.pk}/change/", renamed)
    assert "invisible" in page.content.decode()
    page = issue(admin_client, alice.account, name=name)
    assert "invisible" in page.content.decode() and ApiKey.objects.count() == 1


def test_no_two_accounts_differ_by_case_alone(admin_client: Client, alice: Caller) -> None:
    page = admin_client.post(f"{ACCOUNTS}add/", {"name": "ALICE ltd", "username": "new"})
    assert "There is an account of this name already: Alice Ltd." in page.content.decode()

    Account.objects.create(name="Other")
    renamed = {**members(alice), "name": "OTHER"}
    page = admin_client.post(f"{ACCOUNTS}{alice.account.pk}/change/", renamed)
    assert "There is an account of this name already" in page.content.decode()


def test_a_key_for_a_model_that_is_not_sold_says_so(admin_client: Client, alice: Caller) -> None:
    set_price("llama3", "0.002")

    page = issue(admin_client, alice.account, allowed_models="lama3, llama3").content.decode()

    assert "The key cannot use lama3:latest: no model of this name has a price." in page
    assert '{"model": "llama3:latest"' in page


# --- Issuing a key ------------------------------------------------------------------------------


def test_a_key_is_shown_in_the_answer_that_issues_it_and_works(
    admin_client: Client, alice: Caller
) -> None:
    page = issue(admin_client, alice.account)

    secret = SECRET.findall(page.content.decode())[0]
    assert page.status_code == 200
    assert "no-store" in page["Cache-Control"]
    assert page["Referrer-Policy"] == "no-referrer"
    assert b"curl http://testserver/chat" in page.content
    assert Client().get("/usage", headers={"x-api-key": secret}).status_code == 200


def test_the_secret_is_kept_nowhere(
    admin_client: Client, alice: Caller, caplog: pytest.LogCaptureFixture
) -> None:
    page = issue(admin_client, alice.account)

    secret = SECRET.findall(page.content.decode())[0]
    key = ApiKey.objects.latest("pk")
    entry = LogEntry.objects.get()
    assert entry.change_message == f"Issued key {key.pk} (…{secret[-4:]})."
    kept = [
        caplog.text,
        str(page.cookies),
        str(admin_client.cookies),
        str(list(page.headers.items())),
    ]
    kept += [str(session.get_decoded()) for session in Session.objects.all()]
    kept += [str(vars(entry)), str(vars(key)), admin_client.get("/admin/").content.decode()]
    assert not [text for text in kept if secret in text]


def test_a_form_sent_twice_issues_one_key_and_shows_no_secret(
    admin_client: Client, alice: Caller
) -> None:
    nonce = str(uuid4())
    issue(admin_client, alice.account, form_nonce=nonce)

    again = issue(admin_client, alice.account, form_nonce=nonce)

    assert b"already issued" in again.content
    assert not SECRET.search(again.content.decode())
    assert ApiKey.objects.filter(name="laptop").count() == 1


def test_every_form_has_a_nonce_of_its_own(admin_client: Client, alice: Caller) -> None:
    address = f"{ACCOUNTS}{alice.account.pk}/issue-key/"
    pages = [admin_client.get(address).content.decode() for _ in range(2)]

    nonces = {re.findall(r'name="form_nonce" value="([^"]+)"', page)[0] for page in pages}
    assert len(nonces) == 2
    assert ApiKey.objects.count() == 1


def test_a_key_expires_in_90_days_unless_said(admin_client: Client, alice: Caller) -> None:
    page = admin_client.get(f"{ACCOUNTS}{alice.account.pk}/issue-key/")
    assert b'<option value="90" selected>' in page.content

    issue(admin_client, alice.account)
    issue(admin_client, alice.account, expires="never")

    first, second = ApiKey.objects.filter(name="laptop").order_by("pk")
    assert (first.expiry - timezone.now()).days in (89, 90)
    assert second.expiry is None


def test_an_operator_may_give_every_scope_and_limit_the_models(
    admin_client: Client, alice: Caller
) -> None:
    issue(
        admin_client, alice.account, scopes=["models"], allowed_models="LLAMA3, mistral\nacme/m:7b"
    )

    key = ApiKey.objects.latest("pk")
    assert key.scopes == ["models"]
    assert key.allowed_models == ["llama3:latest", "mistral:latest", "acme/m:7b"]


def test_who_issues_keys_may_not_give_models_away_by_that(alice: Caller) -> None:
    client = clerk("view_account", "add_apikey")

    page = client.get(f"{ACCOUNTS}{alice.account.pk}/issue-key/").content
    assert b'value="infer"' in page and b'value="models"' not in page
    assert b"errornote" in issue(client, alice.account, scopes=["infer", "models"]).content
    assert ApiKey.objects.count() == 1

    issue(client, alice.account)
    assert ApiKey.objects.latest("pk").scopes == ["infer", "usage"]


def test_who_may_give_models_away_is_offered_it(alice: Caller) -> None:
    client = clerk("view_account", "add_apikey", "grant_models_scope")

    assert b'value="models"' in client.get(f"{ACCOUNTS}{alice.account.pk}/issue-key/").content
    issue(client, alice.account, scopes=["models"])
    assert ApiKey.objects.latest("pk").scopes == ["models"]


@pytest.mark.parametrize(
    "fields",
    [
        {"name": ""},
        {"scopes": []},
        {"scopes": ["root"]},
        {"expires": ""},
        {"allowed_models": "no!model"},
        {"form_nonce": "x"},
    ],
)
def test_a_form_with_a_mistake_issues_nothing(
    admin_client: Client, alice: Caller, fields: dict[str, Any]
) -> None:
    page = issue(admin_client, alice.account, **fields)

    assert b"errornote" in page.content
    assert ApiKey.objects.count() == 1


def test_an_account_without_an_owner_gets_no_key(admin_client: Client, alice: Caller) -> None:
    alice.account.memberships.all().delete()

    assert b"has no owner" in issue(admin_client, alice.account).content


def test_there_is_no_key_for_an_account_that_is_not_there(
    admin_client: Client, alice: Caller
) -> None:
    assert admin_client.get(f"{ACCOUNTS}999/issue-key/").status_code == 404
    assert admin_client.post(f"{ACCOUNTS}x/issue-key/", form()).status_code == 404


# --- Keys ---------------------------------------------------------------------------------------


def test_neither_list_nor_page_of_keys_shows_what_authenticates(
    admin_client: Client, alice: Caller
) -> None:
    for address in (KEYS, f"{KEYS}{alice.key.pk}/change/", f"{ACCOUNTS}{alice.account.pk}/change/"):
        page = admin_client.get(address).content.decode()
        assert f"…{alice.key.last_four}" in page
        assert alice.key.digest not in page
        assert alice.key.token_key not in page


def test_only_the_name_of_a_key_can_be_changed(admin_client: Client, alice: Caller) -> None:
    keys.revoke(alice.key.pk)

    fields = {"name": "desktop", "scopes": '["models"]', "expiry": "", "revoked_at": ""}
    admin_client.post(f"{KEYS}{alice.key.pk}/change/", fields)

    key = ApiKey.objects.get()
    assert (key.name, key.scopes) == ("desktop", ["infer", "usage"])
    assert key.revoked_at is not None
    assert admin_client.get(f"{KEYS}add/").status_code == 403


def test_renaming_a_key_cannot_undo_a_revocation(alice: Caller) -> None:
    keys.revoke(alice.key.pk)
    keys.rename(alice.key.pk, "desktop")

    assert ApiKey.objects.get().revoked_at is not None


def test_a_key_is_revoked_after_a_second_look(admin_client: Client, alice: Caller) -> None:
    chosen = {"action": "revoke_selected", "_selected_action": [alice.key.pk]}

    question = admin_client.post(KEYS, chosen)
    assert b"Revoke 1 key" in question.content
    assert alice.get("/usage").status_code == 200

    admin_client.post(KEYS, {**chosen, "confirmed": "yes"})
    assert alice.get("/usage").status_code == 401


def test_who_may_only_look_cannot_revoke(alice: Caller) -> None:
    chosen = {"action": "revoke_selected", "_selected_action": [alice.key.pk], "confirmed": "yes"}

    clerk("view_apikey").post(KEYS, chosen)

    assert ApiKey.objects.get().revoked_at is None


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("state=in+force", True),
        ("state=revoked", False),
        ("state=expired", False),
        ("scope=infer", True),
        ("scope=models", False),
        ("q=Alice", True),
        ("q=Charlie", False),
        ("account__exact={account}", True),
        ("q={last_four}", True),
    ],
)
def test_keys_are_found_by_state_scope_and_name(
    admin_client: Client, alice: Caller, query: str, found: bool
) -> None:
    said = query.format(account=alice.account.pk, last_four=alice.key.last_four)

    page = admin_client.get(f"{KEYS}?{said}")

    assert page.status_code == 200
    assert (f"{KEYS}{alice.key.pk}/change/" in page.content.decode()) == found
