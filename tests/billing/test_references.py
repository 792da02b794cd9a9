"""A payment is posted once, and each entry has its author."""

import io
import os
import pwd
import threading
from decimal import Decimal
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.core.management import CommandError, call_command
from django.db import DatabaseError, connection, transaction

from accounts import authors
from accounts.models import Account
from billing import ledger, statements
from billing.models import Entry, ModelPrice
from tests.harness.callers import Caller


def run(*command: str) -> str:
    out = io.StringIO()
    call_command(*command, stdout=out)
    return out.getvalue()


def grant(*more: str, amount: str = "10") -> str:
    return run("grant", "Alice Ltd", amount, "--reason", "Paid", *more)


def test_a_reference_that_was_posted_before_is_rejected(alice: Caller) -> None:
    grant("--reference", "bank-2026-17")

    with pytest.raises(CommandError, match="'bank-2026-17' was posted before: 10 to Alice Ltd on"):
        grant("--reference", " bank-2026-17 ", amount="11")

    assert statements.balance(alice.account) == 35
    assert Entry.objects.filter(reference="bank-2026-17").count() == 1


def test_a_reference_that_another_account_has_is_rejected(alice: Caller, charlie: Caller) -> None:
    grant("--reference", "bank-2026-17")

    with pytest.raises(CommandError, match="to Alice Ltd on"):
        run("grant", "Charlie Ltd", "10", "--reason", "Paid", "--reference", "bank-2026-17")

    assert statements.balance(charlie.account) == 25


def test_grants_without_a_reference_can_be_repeated(alice: Caller) -> None:
    grant()
    grant()

    assert statements.balance(alice.account) == 45


def test_a_top_up_needs_a_reference(alice: Caller) -> None:
    with pytest.raises(CommandError, match="needs --reference"):
        grant("--kind", "top_up")

    grant("--kind", "top_up", "--reference", "bank-1")

    assert Entry.objects.get(reference="bank-1").kind == Entry.Kind.TOP_UP


def test_a_long_or_unprintable_reference_is_rejected(alice: Caller) -> None:
    for reference in ("x" * 101, "a\x00b", "a\nb"):
        with pytest.raises(CommandError, match="printable"):
            grant("--reference", reference)


def test_the_first_credit_is_a_top_up_if_it_has_a_reference(alice: Caller) -> None:
    run("create_account", "Dora", "--credit", "5")
    run("create_account", "Emil", "--credit", "5", "--reference", "bank-2")
    with pytest.raises(CommandError, match="posted before"):
        run("create_account", "Fritz", "--credit", "5", "--reference", "bank-2")

    kinds = Entry.objects.filter(account__name__in=["Dora", "Emil"]).order_by("pk")
    assert list(kinds.values_list("kind", flat=True)) == ["grant", "top_up"]
    assert not Account.objects.filter(name="Fritz").exists()


@pytest.mark.django_db(transaction=True)
def test_concurrent_posts_of_one_reference_create_one_entry(alice: Caller) -> None:
    results: list[str] = []

    def post() -> None:
        try:
            ledger.post(
                alice.account, Decimal(10), kind=Entry.Kind.TOP_UP, reason="Paid", reference="b-1"
            )
            results.append("posted")
        except ValueError as error:
            results.append(str(error)[:23])
        finally:
            connection.close()

    threads = [threading.Thread(target=post) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)

    assert sorted(results) == [*["The reference 'b-1' was"] * 5, "posted"]
    assert statements.balance(alice.account) == 35


def test_an_entry_cannot_be_replaced_by_one_with_its_reference(alice: Caller) -> None:
    """INSERT OR REPLACE deletes the old entry without firing its triggers."""
    if connection.vendor != "sqlite":
        pytest.skip("PostgreSQL has no such statement.")
    grant("--reference", "bank-1")
    columns = "account_id, kind, amount, reason, reference, author, created_at"
    copy = f"INSERT OR REPLACE INTO billing_entry ({columns}) SELECT {columns} FROM billing_entry"

    with pytest.raises(DatabaseError, match="append-only"), transaction.atomic():
        with connection.cursor() as cursor:
            cursor.execute(copy + " WHERE reference IS NOT NULL")


# --- Authors --------------------------------------------------------------------------------------


def test_the_author_of_a_commands_entry_is_the_system_user(alice: Caller) -> None:
    grant()
    run("set_price", "llama3", "--input", "0.002")

    name = f"command ({pwd.getpwuid(os.getuid()).pw_name})"
    assert Entry.objects.latest("pk").author == ModelPrice.objects.get().author == name


def test_the_author_is_a_user_id_if_the_system_user_has_no_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def unknown(uid: int) -> Any:
        raise KeyError(uid)

    monkeypatch.setattr(pwd, "getpwuid", unknown)

    assert authors.name_of(None) == f"command (uid {os.getuid()})"
    assert authors.name_of(User(username="olga")) == "olga"
