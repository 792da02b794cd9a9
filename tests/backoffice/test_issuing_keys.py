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
    client = staff_client("view_account", "add_apikey")

    page = client.get(f"{ACCOUNTS}{alice.account.pk}/issue-key/").content
    assert b'value="infer"' in page and b'value="models"' not in page
    assert b"errornote" in issue(client, alice.account, scopes=["infer", "models"]).content
    assert ApiKey.objects.count() == 1

    issue(client, alice.account)
    assert ApiKey.objects.latest("pk").scopes == ["infer", "usage"]


def test_who_may_give_models_away_is_offered_it(alice: Caller) -> None:
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
    assert admin_client.post(f"{ACCOUNTS}x/issue-key/", key_form()).status_code == 404


def test_a_key_for_a_model_that_is_not_sold_says_so(admin_client: Client, alice: Caller) -> None:
    set_price("llama3", "0.002")

    page = issue(admin_client, alice.account, allowed_models="lama3, llama3").content.decode()

    assert "The key cannot use lama3:latest: no model of this name has a price." in page
    assert '{"model": "llama3:latest"' in page
