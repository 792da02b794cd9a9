"""Issuing a key: shown once, stored nowhere, limited to what the operator may grant."""

import re
from typing import Any
from uuid import uuid4

import pytest
from django.contrib.admin.models import LogEntry
from django.contrib.sessions.models import Session
from django.test import Client
from django.utils import timezone

from accounts.models import ApiKey
from tests.harness.backoffice import (
    ACCOUNTS,
    issue,
    key_form,
    staff_client,
)
from tests.harness.callers import Caller, set_price

SECRET = re.compile(r"olg_[0-9a-f]{64}")


def test_the_response_that_issues_a_key_shows_it(admin_client: Client, alice: Caller) -> None:
    page = issue(admin_client, alice.account)

    secret = SECRET.findall(page.content.decode())[0]
    assert page.status_code == 200
    assert "no-store" in page["Cache-Control"]
    assert page["Referrer-Policy"] == "no-referrer"
    assert b"curl http://testserver/chat" in page.content
    assert Client().get("/usage", headers={"x-api-key": secret}).status_code == 200


def test_the_secret_is_stored_nowhere(
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


def test_a_key_form_submitted_twice_issues_one_key(admin_client: Client, alice: Caller) -> None:
    nonce = str(uuid4())
    issue(admin_client, alice.account, form_nonce=nonce)

    again = issue(admin_client, alice.account, form_nonce=nonce)

    assert b"already issued" in again.content
    assert not SECRET.search(again.content.decode())
    assert ApiKey.objects.filter(name="laptop").count() == 1


def test_every_key_form_has_its_own_nonce(admin_client: Client, alice: Caller) -> None:
    address = f"{ACCOUNTS}{alice.account.pk}/issue-key/"
    pages = [admin_client.get(address).content.decode() for _ in range(2)]

    nonces = {re.findall(r'name="form_nonce" value="([^"]+)"', page)[0] for page in pages}
    assert len(nonces) == 2
    assert ApiKey.objects.count() == 1


def test_a_key_expires_in_90_days_by_default(admin_client: Client, alice: Caller) -> None:
    page = admin_client.get(f"{ACCOUNTS}{alice.account.pk}/issue-key/")
    assert b'<option value="90" selected>' in page.content

    issue(admin_client, alice.account)
    issue(admin_client, alice.account, expires="never")

    first, second = ApiKey.objects.filter(name="laptop").order_by("pk")
    assert (first.expiry - timezone.now()).days in (89, 90)
    assert second.expiry is None


def test_a_superuser_can_grant_every_scope_and_limit_the_models(
    admin_client: Client, alice: Caller
) -> None:
    issue(
        admin_client, alice.account, scopes=["models"], allowed_models="LLAMA3, mistral\nacme/m:7b"
    )

    key = ApiKey.objects.latest("pk")
    assert key.scopes == ["models"]
    assert key.allowed_models == ["llama3:latest", "mistral:latest", "acme/m:7b"]


def test_permission_to_issue_keys_does_not_allow_the_models_scope(alice: Caller) -> None:
    client = staff_client("view_account", "add_apikey")

    page = client.get(f"{ACCOUNTS}{alice.account.pk}/issue-key/").content
    assert b'value="infer"' in page and b'value="models"' not in page
    assert b"errornote" in issue(client, alice.account, scopes=["infer", "models"]).content
    assert ApiKey.objects.count() == 1

    issue(client, alice.account)
    assert ApiKey.objects.latest("pk").scopes == ["infer", "usage"]


def test_the_models_scope_is_offered_with_its_permission(alice: Caller) -> None:
    client = staff_client("view_account", "add_apikey", "grant_models_scope")

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
def test_an_invalid_form_issues_no_key(
    admin_client: Client, alice: Caller, fields: dict[str, Any]
) -> None:
    page = issue(admin_client, alice.account, **fields)

    assert b"errornote" in page.content
    assert ApiKey.objects.count() == 1


def test_an_account_without_an_owner_gets_no_key(admin_client: Client, alice: Caller) -> None:
    alice.account.memberships.all().delete()

    assert b"has no owner" in issue(admin_client, alice.account).content


def test_issuing_a_key_for_an_unknown_account_is_a_404(admin_client: Client, alice: Caller) -> None:
    assert admin_client.get(f"{ACCOUNTS}999/issue-key/").status_code == 404
    assert admin_client.post(f"{ACCOUNTS}x/issue-key/", key_form()).status_code == 404


def test_issuing_a_key_warns_of_a_model_without_a_price(
    admin_client: Client, alice: Caller
) -> None:
    set_price("llama3", "0.002")

    page = issue(admin_client, alice.account, allowed_models="lama3, llama3").content.decode()

    assert "The key cannot use lama3:latest: no model of this name has a price." in page
    assert '{"model": "llama3:latest"' in page
