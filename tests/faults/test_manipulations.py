"""Which changes to a database without its guards `reconcile` detects, and which it does not.

Each manipulation has its own copy of one balanced database. docs/promises.md lists both kinds.
"""

import dataclasses
import itertools
from collections.abc import Iterator

import psycopg
import pytest

from tests.faults.load import ask_many
from tests.harness.deployment import Deployment, Producer, deploy
from tests.servers.gunicorn import manage

pytestmark = pytest.mark.once  # It brings its own database, so one run is enough.

SEED = """
from accounts.models import Account
from billing import ledger
cap = ledger.open_budget(Account.objects.get(), "money", "month")
ledger.set_limit(cap, 10**13)
"""
ONE = "(SELECT max(id) FROM token_usages WHERE billed)"
CHANGED = "completion_tokens = completion_tokens / 2, cost = cost - (completion_tokens -"
CHANGED += " completion_tokens / 2) * completion_price"
WALLET, CAP = "\"window\" = 'total'", "\"window\" = 'month'"
NEXT_MONTH = "to_char(now() + interval '40 days', 'YYYY-MM')"

DETECTED = {
    "an entry": "UPDATE billing_entry SET amount = amount * 2",
    "a new entry": "INSERT INTO billing_entry"
    " (account_id, kind, amount, reason, author, created_at)"
    " SELECT account_id, 'grant', 10, 'x', 'x', now() FROM billing_entry",
    "the wallet's limit": f'UPDATE billing_budget SET "limit" = "limit" * 2 WHERE {WALLET}',
    "the wallet": f"DELETE FROM billing_budget WHERE {WALLET}",
    "the wallet and its opening": "DELETE FROM billing_limitchange WHERE budget_id ="
    f" (SELECT id FROM billing_budget WHERE {WALLET}); DELETE FROM billing_budget WHERE {WALLET}",
    "the wallet made a monthly cap": f"DELETE FROM billing_limitchange WHERE budget_id ="
    f" (SELECT id FROM billing_budget WHERE {CAP}); DELETE FROM billing_budgetperiod;"
    f" DELETE FROM billing_budget WHERE {CAP};"
    f" UPDATE billing_budget SET \"window\" = 'month' WHERE {WALLET}",
    "a cap": f"DELETE FROM billing_budgetperiod; DELETE FROM billing_budget WHERE {CAP}",
    "a cap's limit": f'UPDATE billing_budget SET "limit" = "limit" * 1000 WHERE {CAP}',
    "a cap's month": f"UPDATE billing_budgetperiod SET period = {NEXT_MONTH}, spent = 0",
    "spent": "UPDATE billing_budget SET spent = spent - 1",
    "held": "UPDATE billing_budget SET held = held + 1",
    "spent of a month": "UPDATE billing_budgetperiod SET spent = 0",
    "the roll-up": "UPDATE billing_usagedaily SET cost = cost - 1",
    "a row's tokens and cost": f"UPDATE token_usages SET {CHANGED} WHERE id = {ONE}",
    "a row's day": f"UPDATE token_usages SET day = day - 1 WHERE id = {ONE}",
    "a row's times": "UPDATE token_usages SET started_at = started_at - interval '1 minute'"
    f" WHERE id = {ONE}",
    "a row": f"DELETE FROM token_usages WHERE id = {ONE}",
    "a row and its hold": "DELETE FROM billing_hold WHERE request_id ="
    f" (SELECT request_id FROM token_usages WHERE id = {ONE});"
    f" DELETE FROM token_usages WHERE id = {ONE}",
    "all rows and holds": "DELETE FROM token_usages; DELETE FROM billing_hold",
    "a row's model": "UPDATE token_usages SET model = 'other:latest'",
    "a hold's model": "UPDATE billing_hold SET model = 'other:latest'",
    "a hold opened again": "UPDATE billing_hold SET state = 'open'",
    "a price": "UPDATE model_prices SET completion_price = completion_price - 1",
    "a row far above its hold": "UPDATE billing_hold SET tokens = 0; UPDATE token_usages SET"
    " prompt_tokens = prompt_tokens + 100000, cost = cost + 100000 * prompt_price",
    "a trigger dropped": "DROP TRIGGER token_usages_rows ON token_usages",
    "a trigger switched off": "ALTER TABLE billing_entry DISABLE TRIGGER billing_entry_rows",
    "a key moved to another account": "INSERT INTO accounts_account (name, status, created_at)"
    " VALUES ('Other', 'active', now()); UPDATE accounts_apikey SET account_id ="
    " (SELECT id FROM accounts_account WHERE name = 'Other')",
    "an open hold that nobody ends": "UPDATE billing_hold SET state = 'open', lease_until ="
    " lease_until + interval '99 years'",
}
UNDETECTED = {
    "an entry and the wallet's limit": "UPDATE billing_entry SET amount = amount * 2;"
    f' UPDATE billing_budget SET "limit" = "limit" * 2 WHERE {WALLET}',
    "an entry's author, reason and date": "UPDATE billing_entry SET author = 'olga', reason = 'x',"
    " created_at = now() - interval '1 year'",
    "a cap's limit and its last change": f'UPDATE billing_budget SET "limit" = 7 WHERE {CAP};'
    " UPDATE billing_limitchange SET new = 7 WHERE old IS NOT NULL",
    "all rows, roll-up and spent": "DELETE FROM token_usages; DELETE FROM billing_hold; DELETE FROM"
    " billing_usagedaily; DELETE FROM billing_budgetperiod; UPDATE billing_budget SET spent = 0;"
    " UPDATE billing_budgetperiod SET spent = 0",
    "a price's beginning": "UPDATE model_prices SET effective_from ="
    " effective_from - interval '1 day'",
    "who counted": "UPDATE token_usages SET count_source = 'estimated'",
    "a revoked key restored": "UPDATE accounts_apikey SET revoked_at = NULL",
}


@pytest.fixture(scope="module")
def balanced() -> Iterator[Deployment]:
    """A database with a wallet, a monthly cap, six rows and a revoked key. Nothing is connected to
    it."""
    with deploy("postgresql") as made:
        made.ollama.answer("/api/generate", Producer())
        done = manage(made.env, "shell", "--no-imports", "-c", SEED)
        assert done.returncode == 0, done.stderr
        with made.gateway() as server:
            assert all(one.done for one in ask_many(server.url, made.key, 6))
        made.books_balance()
        yield made


NUMBERS = itertools.count(1)


def manipulated(balanced: Deployment, statements: str) -> Deployment:
    assert balanced.postgres
    name = f"copy_{next(NUMBERS)}"
    balanced.postgres.execute(f"CREATE DATABASE {name} TEMPLATE gateway")
    copy = dataclasses.replace(balanced, url=balanced.postgres.url(name))
    with psycopg.connect(copy.url) as connection:
        connection.execute("SET session_replication_role = replica")
        connection.execute("ALTER TABLE token_usages DROP CONSTRAINT cost_follows_from_row")
        connection.execute(statements)
    return copy


@pytest.mark.parametrize("name", ["nothing", *DETECTED, *UNDETECTED])
def test_reconcile_detects_the_manipulations_that_it_promises(
    balanced: Deployment, name: str
) -> None:
    deployment = manipulated(balanced, {"nothing": "SELECT 1", **DETECTED, **UNDETECTED}[name])

    proved = manage(deployment.env, "reconcile")

    assert proved.returncode == (1 if name in DETECTED else 0), proved.stdout + proved.stderr
    assert "Traceback" not in proved.stderr
