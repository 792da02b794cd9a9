"""The list of keys, a key's page, and revoking."""

import pytest
from django.test import Client

from accounts import keys
from accounts.models import ApiKey
from tests.harness.backoffice import (
    ACCOUNTS,
    KEYS,
    staff_client,
)
from tests.harness.callers import Caller


def test_pages_of_keys_do_not_show_digests(admin_client: Client, alice: Caller) -> None:
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


def test_a_key_is_revoked_after_confirmation(admin_client: Client, alice: Caller) -> None:
    chosen = {"action": "revoke_selected", "_selected_action": [alice.key.pk]}

    question = admin_client.post(KEYS, chosen)
    assert b"Revoke 1 API key" in question.content
    assert alice.get("/usage").status_code == 200

    admin_client.post(KEYS, {**chosen, "confirmed": "yes"})
    assert alice.get("/usage").status_code == 401


def test_permission_to_view_keys_does_not_allow_revoking(alice: Caller) -> None:
    chosen = {"action": "revoke_selected", "_selected_action": [alice.key.pk], "confirmed": "yes"}

    staff_client("view_apikey").post(KEYS, chosen)

    assert ApiKey.objects.get().revoked_at is None


@pytest.mark.parametrize(
    ("query", "is_listed"),
    [
        ("state=valid", True),
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
def test_the_list_of_keys_filters_by_state_scope_and_name(
    admin_client: Client, alice: Caller, query: str, is_listed: bool
) -> None:
    parameters = query.format(account=alice.account.pk, last_four=alice.key.last_four)

    page = admin_client.get(f"{KEYS}?{parameters}")

    assert page.status_code == 200
    assert (f"{KEYS}{alice.key.pk}/change/" in page.content.decode()) == is_listed


def test_a_revocation_says_what_happens_to_running_responses(
    admin_client: Client, alice: Caller
) -> None:
    chosen = {"action": "revoke_selected", "_selected_action": [alice.key.pk]}

    page = admin_client.post(KEYS, chosen).content.decode()

    assert "cancelled within a second" in page and "as usual" not in page
