"""Shared fixtures: Alice owns an account with credit, Bob is a member of it, Charlie has an account
of his own and must see nothing of theirs, and Olga is the operator.
"""

from collections.abc import Iterator
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.db import connection
from django.db.backends.signals import connection_created
from django.test import Client, TransactionTestCase

from accounts import keys, last_used
from accounts.models import Membership
from billing import append_only
from billing.models import BillingConfig, ModelPrice
from gateway.scheduling import hosts, inventory
from gateway.views import health
from tests.architecture import ledger_writes
from tests.fakes.ollama import FakeOllama
from tests.harness.callers import Caller, new_caller, set_price

# A statement that writes a guarded table fails the test unless the table's writer sent it.
connection_created.connect(ledger_writes.install, dispatch_uid="ledger_writes")


@pytest.fixture
def ollama(settings: Any) -> Iterator[FakeOllama]:
    """A fake model server on a real socket; OLLAMA_BASE points to it."""
    with FakeOllama() as fake:
        settings.OLLAMA_BASE = fake.url
        yield fake
        fake.reset()


@pytest.fixture(autouse=True)
def forget_used_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget the keys that earlier tests used; they no longer exist."""
    monkeypatch.setattr(last_used, "_noted", {})


@pytest.fixture(autouse=True)
def forget_model_servers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget the model servers of earlier tests; a port may be used twice."""
    monkeypatch.setattr(inventory, "_inventories", {})
    monkeypatch.setattr(hosts, "_hosts", {})
    monkeypatch.setattr(health, "_database_status", None)


@pytest.fixture
def alice(db: None) -> Caller:
    return new_caller("Alice")


@pytest.fixture
def bob(alice: Caller) -> Caller:
    """A member of Alice's account, with his own key."""
    user = User.objects.create_user("bob")
    Membership.objects.create(account=alice.account, user=user, role="member")
    key, secret = keys.issue(alice.account, name="Bob's key", user=user)
    return Caller(key, secret)


@pytest.fixture
def charlie(db: None) -> Caller:
    return new_caller("Charlie")


@pytest.fixture
def olga(db: None) -> Caller:
    """The operator. Her key may pull and delete models."""
    return new_caller("Olga", scopes=["infer", "usage", "models"])


@pytest.fixture
def admin_client(db: None) -> Client:
    """A client that is logged in to the back-office as an operator."""
    client = Client()
    client.force_login(User.objects.create_superuser("olga-the-operator"))
    return client


@pytest.fixture
def priced(db: None) -> ModelPrice:
    """Prices per 1,000 tokens: llama3 0.002 in and 0.004 out, mistral 0.0015, embeddings 0.0001."""
    llama3 = set_price("llama3", "0.002", "0.004")
    set_price("mistral", "0.0015")
    set_price("nomic-embed-text", "0.0001")
    return llama3


# --- Emptying the database between tests --------------------------------------------------------
# Append-only tables reject DELETE, so their triggers are dropped for that moment. Production has no
# switch for it. The database keeps its id, because running gateways have read it.
# Django's stubs leave `_fixture_teardown` out.

_empty_tables = TransactionTestCase._fixture_teardown  # type: ignore[attr-defined]


def _empty_guarded_tables(self: TransactionTestCase) -> None:
    kept = BillingConfig.objects.get()
    with connection.schema_editor() as editor:
        append_only.unprotect(editor)
    _empty_tables(self)
    with connection.schema_editor() as editor:
        append_only.protect(editor)
    BillingConfig.objects.all().delete()
    kept.save(force_insert=True)


TransactionTestCase._fixture_teardown = _empty_guarded_tables  # type: ignore[attr-defined]
