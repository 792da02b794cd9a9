"""The cast and the stage: who plays in every test, on what.

Alice owns an account with credit, Bob is a member of it, Charlie must see nothing of it, Olga is
the operator.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.db import connection
from django.db.backends.signals import connection_created
from django.test import Client, TransactionTestCase
from django.utils import timezone

from accounts import keys, last_used
from accounts.models import Account, ApiKey, Membership
from billing import append_only, clock, ledger, price_book
from billing.models import BillingConfig, Budget, Entry, ModelPrice
from gateway.scheduling import hosts, inventory
from gateway.views import health
from tests.architecture import ledger_writes
from tests.fakes.ollama import FakeOllama

# For the whole suite: a guarded table that anybody but its writer writes fails the test.
connection_created.connect(ledger_writes.install, dispatch_uid="ledger_writes")


@pytest.fixture
def ollama(settings: Any) -> Iterator[FakeOllama]:
    """A model server on a real socket, to which the gateway is pointed."""
    with FakeOllama() as fake:
        settings.OLLAMA_BASE = fake.url
        yield fake
        fake.reset()


@pytest.fixture(autouse=True)
def no_key_was_used_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget what earlier tests noted: their keys are gone."""
    monkeypatch.setattr(last_used, "_noted", {})


@pytest.fixture(autouse=True)
def no_model_server_is_known_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget what earlier tests' model servers said; a port may come twice."""
    monkeypatch.setattr(inventory, "_inventories", {})
    monkeypatch.setattr(hosts, "_hosts", {})
    monkeypatch.setattr(health, "_database_said", None)


@dataclass
class Caller:
    """A customer with a key, calling over HTTP in this process."""

    key: ApiKey
    secret: str
    client: Client = field(default_factory=lambda: Client(raise_request_exception=False))

    @property
    def account(self) -> Account:
        account: Account = self.key.account
        return account

    def get(self, path: str, **query: Any) -> Any:
        return self.client.get(path, query, headers=self.headers)

    def post(self, path: str, body: Any = None, **fields: Any) -> Any:
        """Send a JSON body: bytes as they are, or an object from keyword arguments."""
        data = body if body is not None else fields
        return self.client.post(path, data, content_type="application/json", headers=self.headers)

    def delete(self, path: str, **fields: Any) -> Any:
        return self.client.delete(
            path, fields, content_type="application/json", headers=self.headers
        )

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.secret}"}

    @property
    def wallet(self) -> Budget:
        return Budget.objects.get(account=self.account, key=None, unit="money", window="total")


def new_caller(
    name: str, credit: str = "25", scopes: list[str] | None = None, *, postpaid: bool = False
) -> Caller:
    """Return a new account's owner with a key, and credit unless that is zero or it is postpaid."""
    user = User.objects.create_user(name.lower())
    account = Account.objects.create(name=f"{name} Ltd")
    Membership.objects.create(account=account, user=user, role="owner")
    if not postpaid:
        ledger.open_budget(account, Budget.Unit.MONEY, Budget.Window.TOTAL)
    if Decimal(credit) and not postpaid:
        ledger.post(account, Decimal(credit), kind=Entry.Kind.TOP_UP, reason="First credit")
    key, secret = keys.issue(account, name=f"{name}'s key", scopes=scopes)
    return Caller(key, secret)


@pytest.fixture
def alice(db: None) -> Caller:
    return new_caller("Alice")


@pytest.fixture
def bob(alice: Caller) -> Caller:
    """A member of Alice's account, with a key of his own."""
    user = User.objects.create_user("bob")
    Membership.objects.create(account=alice.account, user=user, role="member")
    key, secret = keys.issue(alice.account, name="Bob's key", user=user)
    return Caller(key, secret)


@pytest.fixture
def charlie(db: None) -> Caller:
    return new_caller("Charlie")


@pytest.fixture
def olga(db: None) -> Caller:
    """The operator: her key may pull and delete models."""
    return new_caller("Olga", scopes=["infer", "usage", "models"])


@pytest.fixture
def office(db: None) -> Client:
    """The browser of an operator, logged in to the back-office."""
    client = Client()
    client.force_login(User.objects.create_superuser("olga-the-operator"))
    return client


@pytest.fixture
def priced(db: None) -> ModelPrice:
    """llama3 at 0.002 read and 0.004 written per 1,000 tokens; mistral and embeddings too."""
    llama3 = set_price("llama3", "0.002", "0.004")
    set_price("mistral", "0.0015")
    set_price("nomic-embed-text", "0.0001")
    return llama3


@contextlib.contextmanager
def database_time(moment: datetime | None) -> Iterator[None]:
    """The database's clock stands at a moment; None leaves it alone."""
    with pytest.MonkeyPatch.context() as patch:
        if moment is not None:
            told = connection.ops.adapt_datetimefield_value
            later = timedelta()
            patch.setattr(clock, "now_sql", lambda later=later: ("%s", [told(moment + later)]))
            patch.setattr(clock, "read", lambda: moment)
        yield


def set_price(model: str, prompt: str, completion: str | None = None) -> ModelPrice:
    now = timezone.now()
    return price_book.schedule(
        price_book.read_line(model, prompt, completion), effective_from=now, now=now
    )


# --- Emptying the database between tests --------------------------------------------------------
# Append-only tables refuse it, so the guard is lifted for just that moment; production has no
# switch for it. The database stays the same one, for whoever has read its id.
# The stubs of Django leave `_fixture_teardown` out.

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
