"""Accounts and keys from the command line."""

import re
from datetime import timedelta
from decimal import Decimal
from io import StringIO
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.db import IntegrityError, transaction
from django.test import Client
from django.utils import timezone

from accounts.models import Account, ApiKey, Membership
from billing import reconciliation, statements
from billing.models import Budget
from tests.harness.callers import Caller

pytestmark = pytest.mark.django_db


def run(command: str, *args: str) -> tuple[str, str]:
    """Return what a command writes to standard output and standard error."""
    out, err = StringIO(), StringIO()
    call_command(command, *args, stdout=out, stderr=err)
    return out.getvalue(), err.getvalue()


def status_with(secret: str) -> int:
    return Client().get("/usage", headers={"x-api-key": secret}).status_code


# --- create_account -------------------------------------------------------------------------------


def test_an_account_has_an_owner_and_a_wallet_with_its_credit() -> None:
    out, _err = run("create_account", "Acme", "--email", "a@example.com", "--credit", "12.5")

    account = Account.objects.get(name="Acme")
    owner = Membership.objects.get(account=account, role="owner").user
    assert (owner.username, owner.email) == ("acme", "a@example.com")
    assert not owner.has_usable_password() and not owner.is_staff
    assert statements.balance(account) == Decimal("12.5")
    assert "credit 12.5" in out and "issue_key 'Acme'" in out


def test_an_account_without_credit_has_an_empty_wallet() -> None:
    run("create_account", "Acme")

    assert statements.balance(Account.objects.get()) == 0


def test_a_postpaid_account_has_no_wallet() -> None:
    run("create_account", "Acme", "--postpaid")

    assert not Budget.objects.exists()
    assert statements.balance(Account.objects.get()) is None


def test_two_accounts_with_similar_names_have_two_owners() -> None:
    run("create_account", "Acme")
    run("create_account", "ACME!")

    assert Membership.objects.values("user").distinct().count() == 2


def test_a_name_without_latin_letters_gets_an_owner() -> None:
    run("create_account", "株式会社")

    assert Membership.objects.get().user.username == "owner"


@pytest.mark.parametrize(
    "args",
    [
        ["Alice Ltd"],
        [" "],
        ["x" * 101],
        ["Acme", "--credit=-1"],
        ["Acme", "--credit=lots"],
        ["Acme", "--credit=1e3"],
        ["Acme", "--credit=0.0000000000001"],
        ["Acme", "--credit=99999999999"],
        ["Acme", "--credit=5", "--postpaid"],
    ],
    ids=str,
)
def test_invalid_options_create_no_account(alice: Caller, args: list[str]) -> None:
    with pytest.raises(CommandError):
        run("create_account", *args)
    assert Account.objects.count() == 1 and Membership.objects.count() == 1


def test_the_books_balance_after_an_account_is_created() -> None:
    run("create_account", "Acme", "--credit", "0.000000000001")

    assert not any(differences for _check, differences in reconciliation.differences())


# --- issue_key ------------------------------------------------------------------------------------


def test_only_the_key_is_written_to_standard_output(alice: Caller) -> None:
    out, err = run("issue_key", "Alice Ltd", "--name", "ci")

    assert re.fullmatch(r"olg_[0-9a-f]{64}\n", out)
    assert "'ci' for Alice Ltd" in err and out.strip() not in err
    assert status_with(out.strip()) == 200


def test_a_key_has_customer_scopes_by_default(alice: Caller) -> None:
    run("issue_key", "Alice Ltd", "--name", "ci")

    key = ApiKey.objects.get(name="ci")
    assert (key.scopes, key.allowed_models, key.expiry) == (["infer", "usage"], [], None)
    assert key.user == alice.key.user


def test_a_key_is_issued_with_scopes_models_and_a_lifetime(alice: Caller) -> None:
    limits = ["--scopes", "infer, models", "--models", "llama3, mistral:7b,", "--expires", "90d"]
    run("issue_key", "Alice Ltd", "--name", "ci", *limits)

    key = ApiKey.objects.get(name="ci")
    assert key.scopes == ["infer", "models"] and key.allowed_models == ["llama3", "mistral:7b"]
    left = key.expiry - timezone.now()
    assert timedelta(days=89) < left <= timedelta(days=90)


@pytest.mark.usefixtures("priced")
def test_a_model_without_a_price_causes_a_warning(alice: Caller) -> None:
    models = "LLAMA3, lama3, no!model, library/mistral:latest"
    out, err = run("issue_key", "Alice Ltd", "--name", "ci", "--models", models)

    warned = re.findall(r"^Warning: '(.+)' has no price", err, re.MULTILINE)
    assert warned == ["lama3", "no!model"]
    assert status_with(out.strip()) == 200


@pytest.mark.parametrize(
    ("text", "span"),
    [("1h", timedelta(hours=1)), ("365d", timedelta(365)), ("99999w", timedelta(weeks=99999))],
)
def test_a_lifetime_is_given_in_hours_days_or_weeks(
    alice: Caller, text: str, span: timedelta
) -> None:
    run("issue_key", "Alice Ltd", "--name", "ci", "--expires", text)

    left = ApiKey.objects.get(name="ci").expiry - timezone.now()
    assert span - timedelta(minutes=5) < left <= span


@pytest.mark.parametrize(
    "args",
    [
        ["Nobody", "--name", "ci"],
        ["Alice Ltd"],
        ["Alice Ltd", "--name", "ci", "--scopes", "root"],
        ["Alice Ltd", "--name", "ci", "--scopes", ","],
        ["Alice Ltd", "--name", "ci", "--models", ""],
        ["Alice Ltd", "--name", "ci", "--models", " , "],
        ["Alice Ltd", "--name", "ci", "--expires", "soon"],
        ["Alice Ltd", "--name", "ci", "--expires", "0d"],
        ["Alice Ltd", "--name", "ci", "--expires=-1d"],
        ["Alice Ltd", "--name", "ci", "--expires", "999999d"],
        ["Alice Ltd", "--name", "ci", "--expires", "٣d"],
    ],
    ids=str,
)
def test_invalid_options_issue_no_key(alice: Caller, args: list[str]) -> None:
    with pytest.raises(CommandError):
        run("issue_key", *args)
    assert ApiKey.objects.count() == 1


@pytest.mark.parametrize("name", ["", " ", "x" * 101], ids=["empty", "blank", "long"])
def test_a_key_needs_a_name_of_1_to_100_characters(alice: Caller, name: str) -> None:
    with pytest.raises(CommandError):
        run("issue_key", "Alice Ltd", "--name", name)


def test_an_account_without_an_owner_gets_no_key() -> None:
    Account.objects.create(name="Orphan")

    with pytest.raises(CommandError, match="no owner"):
        run("issue_key", "Orphan", "--name", "ci")


def test_each_key_has_its_own_secret(alice: Caller) -> None:
    secrets = {run("issue_key", "Alice Ltd", "--name", "ci")[0] for _ in range(3)}

    assert len(secrets) == 3


# --- revoke_key -----------------------------------------------------------------------------------


def test_a_revoked_key_is_rejected_with_its_next_request(alice: Caller) -> None:
    assert status_with(alice.secret) == 200
    out, _err = run("revoke_key", str(alice.key.pk))

    assert "is revoked" in out and status_with(alice.secret) == 401
    assert ApiKey.objects.filter(pk=alice.key.pk).exists()


def test_revoking_twice_keeps_the_first_date(alice: Caller) -> None:
    run("revoke_key", str(alice.key.pk))
    first = ApiKey.objects.get(pk=alice.key.pk).revoked_at
    out, _err = run("revoke_key", str(alice.key.pk))

    assert "was revoked before, on" in out
    assert ApiKey.objects.get(pk=alice.key.pk).revoked_at == first


@pytest.mark.parametrize("number", ["0", "999999999", "x", ""])
def test_an_unknown_key_cannot_be_revoked(number: Any) -> None:
    with pytest.raises(CommandError):
        run("revoke_key", number)


# --- Misspelled arguments -------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["issue_key", "grant"])
@pytest.mark.parametrize("slip", ["alice ltd", "Alice Lt", "ALICE LTD", "Alce Ltd"])
def test_a_misspelled_account_gets_the_closest_name(alice: Caller, command: str, slip: str) -> None:
    more = ["--name", "ci"] if command == "issue_key" else ["5", "--reason", "x"]

    with pytest.raises(CommandError, match=r"Did you mean 'Alice Ltd'\?"):
        run(command, slip, *more)
    with pytest.raises(CommandError, match="create_account 'Zorro'"):
        run(command, "Zorro", *more)


def test_no_two_account_names_differ_in_case_alone(alice: Caller) -> None:
    with pytest.raises(CommandError, match="an account of this name already: Alice Ltd"):
        run("create_account", "alice LTD")
    with pytest.raises(IntegrityError), transaction.atomic():
        Account.objects.create(name="ALICE Ltd")


@pytest.mark.parametrize("name", ["Acme\u202e", "Ac\u200bme", "Ac\x1bme", "Ac\nme"])
def test_a_name_with_an_invisible_character_is_rejected(alice: Caller, name: str) -> None:
    for args in (["create_account", name], ["issue_key", "Alice Ltd", "--name", name]):
        with pytest.raises(CommandError, match="invisible"):
            run(*args)


def test_models_separated_by_spaces_are_rejected(alice: Caller) -> None:
    with pytest.raises(CommandError, match="--models llama3,mistral"):
        run("issue_key", "Alice Ltd", "--name", "ci", "--models", "llama3 mistral")


@pytest.mark.parametrize("email", ["notanemail", "a@b", "a b@example.com"])
def test_an_invalid_email_is_rejected(email: str) -> None:
    with pytest.raises(CommandError, match="--email takes an address"):
        run("create_account", "Acme", "--email", email)
    assert not Account.objects.exists()


def test_a_new_account_without_credit_names_the_next_command() -> None:
    out, _err = run("create_account", "Acme")
    assert "manage.py grant 'Acme'" in out and "requests are rejected until then" in out

    assert "grant" not in run("create_account", "Paid", "--credit", "5")[0]
    assert "grant" not in run("create_account", "Later", "--postpaid")[0]
