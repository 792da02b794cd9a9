"""Creating, finding and suspending customers."""

from typing import Any

import pytest
from django.contrib.auth.models import User

from accounts import customers
from accounts.models import Account, Membership
from tests.harness.callers import Caller

pytestmark = pytest.mark.django_db


def test_a_new_account_has_its_owner() -> None:
    owner = customers.create_owner("dora", "dora@example.com")
    account = customers.create("Dora Ltd", owner=owner)

    assert customers.owner_of(account) == owner
    assert not owner.has_usable_password() and account.is_active


def test_a_name_that_differs_in_case_alone_is_taken(alice: Caller) -> None:
    with pytest.raises(customers.NameTaken, match="this name already: Alice Ltd"):
        customers.create("ALICE ltd", owner=alice.key.user)


def test_a_name_that_is_taken_after_the_check_is_reported_as_taken(
    alice: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two operators create the same account at once: one of them gets a message, not a 500."""
    check = customers.require_free_name
    calls: list[str] = []

    def let_the_first_check_pass(name: str) -> None:
        calls.append(name)
        if len(calls) > 1:
            check(name)

    monkeypatch.setattr(customers, "require_free_name", let_the_first_check_pass)

    with pytest.raises(customers.NameTaken):
        customers.create("Alice Ltd", owner=alice.key.user)
    assert Membership.objects.count() == 1


def test_suspending_returns_the_accounts_that_were_active(alice: Caller, charlie: Caller) -> None:
    ids = [alice.account.pk, charlie.account.pk]
    customers.suspend([charlie.account.pk])

    assert customers.suspend(ids) == [alice.account]
    assert set(customers.activate(ids)) == {alice.account, charlie.account}
    assert customers.activate(ids) == []


def test_changing_a_name_does_not_activate_an_account_suspended_meanwhile(alice: Caller) -> None:
    form_row: Any = Account.objects.get(pk=alice.account.pk)
    customers.suspend([form_row.pk])
    form_row.name = "Alice Inc"

    customers.change(form_row)

    account = Account.objects.get(pk=form_row.pk)
    assert (account.name, account.status) == ("Alice Inc", Account.Status.SUSPENDED)


def test_a_username_is_made_from_the_name_of_the_account() -> None:
    assert customers.free_username("Acme & Sons") == "acme-sons"
    assert customers.free_username("Büro Nord GmbH") == "buro-nord-gmbh"
    assert customers.free_username("株式会社") == "owner"

    User.objects.create_user("acme-sons")
    assert customers.free_username("Acme & Sons").startswith("acme-sons-")
