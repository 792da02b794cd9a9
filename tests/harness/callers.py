"""Customers who call over HTTP in this process, and the prices and clock they need."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.db import connection
from django.test import Client
from django.utils import timezone

from accounts import keys
from accounts.models import Account, ApiKey, Membership
from billing import clock, ledger, price_book
from billing.models import Budget, Entry, ModelPrice


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
        return Budget.objects.wallets().get(account=self.account)


def new_caller(
    name: str, credit: str = "25", scopes: list[str] | None = None, *, postpaid: bool = False
) -> Caller:
    """Create an account with an owner, credit and a key. A postpaid account has no wallet."""
    user = User.objects.create_user(name.lower())
    account = Account.objects.create(name=f"{name} Ltd")
    Membership.objects.create(account=account, user=user, role="owner")
    if not postpaid:
        ledger.open_budget(account, Budget.Unit.MONEY, Budget.Window.TOTAL)
    if Decimal(credit) and not postpaid:
        ledger.post(account, Decimal(credit), kind=Entry.Kind.TOP_UP, reason="First credit")
    key, secret = keys.issue(account, name=f"{name}'s key", scopes=scopes)
    return Caller(key, secret)


def set_price(model: str, prompt: str, completion: str | None = None) -> ModelPrice:
    now = timezone.now()
    return price_book.schedule(
        price_book.read_line(model, prompt, completion), effective_from=now, now=now
    )


@contextlib.contextmanager
def database_time(moment: datetime | None) -> Iterator[None]:
    """Set the database's clock to a moment. None leaves the clock alone."""
    with pytest.MonkeyPatch.context() as patch:
        if moment is not None:
            adapt = connection.ops.adapt_datetimefield_value
            later = timedelta()
            patch.setattr(clock, "now_sql", lambda later=later: ("%s", [adapt(moment + later)]))
            patch.setattr(clock, "read", lambda: moment)
        yield
