"""Requests run the same queries with few and with thousands of other keys and rows."""

from collections.abc import Iterator
from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from accounts.models import Account, ApiKey
from billing.models import Budget, BudgetPeriod, Hold, ModelPrice, TokenUsage, UsageDaily
from gateway.http.request_ids import new_request_id
from tests.fakes.ollama import FakeOllama
from tests.harness.callers import Caller

MANY = 5_000
BIG_TABLES = (
    "accounts_apikey",
    "accounts_account",
    "token_usages",
    "billing_usagedaily",
    "billing_hold",
    "billing_budget",
    "billing_budgetperiod",
)


def add_many_rows(price: ModelPrice, user: User) -> None:
    """Add thousands of other accounts, keys, holds, usage rows and roll-up lines."""
    now = timezone.now()
    accounts = Account.objects.bulk_create(Account(name=f"Other {n}") for n in range(MANY))
    keys = ApiKey.objects.bulk_create(
        ApiKey(digest=f"{n:0128d}", token_key=str(n), user=user, account=account, name="other")
        for n, account in enumerate(accounts)
    )
    same = {"price": price, "model": price.model}
    Budget.objects.bulk_create(Budget(account=account) for account in accounts)
    caps = Budget.objects.bulk_create(Budget(account=one, window="month") for one in accounts)
    BudgetPeriod.objects.bulk_create(BudgetPeriod(budget=cap, period="2026-11") for cap in caps)
    pairs = list(zip(accounts, keys, [new_request_id() for _ in keys], strict=True))
    Hold.objects.bulk_create(
        held(account, key, request, now, same) for account, key, request in pairs
    )
    TokenUsage.objects.bulk_create(
        used(account, key, request, now, same) for account, key, request in pairs
    )
    UsageDaily.objects.bulk_create(
        UsageDaily(account=account, key=key, day=now.date(), requests=1, **same)
        for account, key, _request in pairs
    )


def held(account: Account, key: ApiKey, request: Any, now: Any, same: dict[str, Any]) -> Hold:
    return Hold(
        request_id=request,
        account=account,
        key=key,
        operation="chat",
        amount=Decimal(0),
        tokens=0,
        prompt_estimate=0,
        state="settled",
        worker="w",
        opened_at=now,
        lease_until=now + timedelta(seconds=30),
        **same,
    )


def used(account: Account, key: ApiKey, request: Any, now: Any, same: dict[str, Any]) -> TokenUsage:
    return TokenUsage(
        request_id=request,
        account=account,
        key=key,
        operation="chat",
        prompt_tokens=0,
        completion_tokens=0,
        prompt_price=0,
        completion_price=0,
        billed=False,
        cost=Decimal(0),
        outcome="complete",
        count_source="upstream",
        started_at=now,
        settled_at=now,
        day=now.date(),
        **same,
    )


def queries_of(send: Any) -> list[str]:
    """Return the statements of a request, without those that begin and end transactions."""
    with CaptureQueriesContext(connection) as captured:
        assert send().status_code == 200
    transactions = ("BEGIN", "COMMIT", "SAVEPOINT", "RELEASE")
    return [query["sql"] for query in captured if not query["sql"].startswith(transactions)]


def scans(statements: list[str]) -> Iterator[str]:
    """Yield statements whose plan reads a whole big table."""
    explain, word = "EXPLAIN QUERY PLAN", "SCAN"
    if connection.vendor == "postgresql":
        explain, word = "EXPLAIN", "Seq Scan on"
    with connection.cursor() as cursor:
        for statement in statements:
            cursor.execute(f"{explain} {statement}")
            plan = "\n".join(str(row) for row in cursor.fetchall())
            yield from (
                f"{table}: {statement}\n{plan}" for table in BIG_TABLES if f"{word} {table}" in plan
            )


@pytest.mark.parametrize("path", ["/usage", "/usage/history", "/generate"])
def test_a_request_runs_the_same_queries_with_many_other_rows(
    alice: Caller, ollama: FakeOllama, priced: ModelPrice, path: str
) -> None:
    def send() -> Any:
        if path == "/generate":
            return alice.post(path, model="llama3", prompt="hi")
        return alice.get(path)

    send()  # The first request of a key in a minute also records its last use.
    few = queries_of(send)
    add_many_rows(priced, alice.key.user)
    with connection.cursor() as cursor:
        cursor.execute("ANALYZE")

    many = queries_of(send)

    assert len(many) == len(few) <= 16
    assert not list(scans(many))


def test_authentication_is_one_query(alice: Caller) -> None:
    statements = queries_of(lambda: alice.get("/usage"))

    assert len([s for s in statements if "accounts_apikey" in s and "digest" in s]) == 1
    assert "digest" in statements[0]
