"""The statements that write holds and settlements, each stated once.

SQLite executes them one by one, from `ledger.py`, `budgets.py` and `idempotency.py`. PostgreSQL
executes the same statements inside two functions (`functions.py`). They are raw SQL, because the
ORM needs several times as long to compile a statement as a database needs to run it. Tables and
columns come from the models, so their names cannot differ.

Each placeholder is named: a parameter on SQLite, and a variable in a function.
"""

from datetime import date, datetime
from typing import Any
from uuid import UUID

from django.db import connection, models

from billing.models import (
    BillingConfig,
    Budget,
    BudgetPeriod,
    Hold,
    IdempotencyKey,
    TokenUsage,
    UsageDaily,
)


def _table(model: type[models.Model]) -> str:
    return f'"{model._meta.db_table}"'


def _insert(model: type[models.Model]) -> str:
    """Return an INSERT of every column but one that the database counts up."""
    fields = [one for one in model._meta.concrete_fields if not isinstance(one, models.AutoField)]
    names = ", ".join(f'"{field.column}"' for field in fields)
    values = ", ".join(f"%({field.attname})s" for field in fields)
    return f"INSERT INTO {_table(model)} ({names}) VALUES ({values})"


# --- Holds ------------------------------------------------------------------------------------

# Only an expired key is replaced. The ORM cannot put a condition on the update.
CLAIM = f"""
INSERT INTO {_table(IdempotencyKey)} AS claimed
    (api_key_id, digest, fingerprint, request_id, expires_at)
VALUES (%(key_id)s, %(digest)s, %(fingerprint)s, %(request_id)s, %(expires_at)s)
ON CONFLICT (api_key_id, digest) DO UPDATE SET
    fingerprint = EXCLUDED.fingerprint,
    request_id = EXCLUDED.request_id,
    expires_at = EXCLUDED.expires_at
WHERE claimed.expires_at <= %(now)s
"""

# A database may be replaced while a process runs, so the statement also reads its id.
INSERT_HOLD = f"{_insert(Hold)} RETURNING (SELECT database_id FROM {_table(BillingConfig)})"

# Several processes may write the same lost hold. Only the first of them writes it.
INSERT_LOST_HOLD = f"{_insert(Hold)} ON CONFLICT (request_id) DO NOTHING"

# The gate. Only one caller can move a hold out of a state.
MOVE = f"""
UPDATE {_table(Hold)} SET state = %(after)s, closed_at = %(now)s
WHERE request_id = %(request_id)s AND state = %(before)s
    AND lease_boot_ms = COALESCE(%(lease_boot_ms)s, lease_boot_ms)
"""

DELETE_HOLD = f"""
DELETE FROM {_table(Hold)} WHERE request_id = %(request_id)s AND state = 'open'
RETURNING account_id, key_id, amount, tokens, held_in
"""


# --- Budgets ----------------------------------------------------------------------------------

# `BudgetQuerySet.binding`, in locking order.
BUDGETS = f"""
SELECT id, unit, "window", "limit" FROM {_table(Budget)}
WHERE account_id = %(account_id)s AND (key_id IS NULL OR key_id = %(key_id)s)
ORDER BY id
"""

# The WHERE is the limit, and the row count decides. It compares the rest of the budget with the
# amount, because the sum of both may not fit in 64 bits.
TAKE = f"""
UPDATE {_table(Budget)} SET held = held + %(amount)s
WHERE id = %(budget_id)s AND "limit" - spent - held >= %(amount)s
"""

# The first request of a month inserts the month's row. A change of the limit in the meantime
# applies to the next request.
TAKE_IN_MONTH = f"""
INSERT INTO {_table(BudgetPeriod)} AS month (budget_id, period, spent, held)
SELECT %(budget_id)s, %(month)s, 0, %(amount)s WHERE %(limit)s >= %(amount)s
ON CONFLICT (budget_id, period) DO UPDATE SET held = month.held + EXCLUDED.held
WHERE %(limit)s - month.spent - month.held >= EXCLUDED.held
"""

CHARGE = f"""
UPDATE {_table(Budget)} SET held = held - %(held)s, spent = spent + %(used)s
WHERE id = %(budget_id)s
"""

CHARGE_MONTH = f"""
UPDATE {_table(BudgetPeriod)} SET held = held - %(held)s, spent = spent + %(used)s
WHERE budget_id = %(budget_id)s AND period = %(month)s
"""

SPEND_IN_MONTH = f"""
INSERT INTO {_table(BudgetPeriod)} AS month (budget_id, period, spent, held)
VALUES (%(budget_id)s, %(month)s, %(used)s, 0)
ON CONFLICT (budget_id, period) DO UPDATE SET spent = month.spent + EXCLUDED.spent
"""


# --- Usage ------------------------------------------------------------------------------------

INSERT_USAGE = _insert(TokenUsage)

ROLL_UP = f"""
INSERT INTO {_table(UsageDaily)} AS daily
    (account_id, day, key_id, model, price_id,
     requests, unbilled, prompt_tokens, completion_tokens, cost)
VALUES (%(account_id)s, %(day)s, %(key_id)s, %(model)s, %(price_id)s,
    %(requests)s, %(unbilled)s, %(prompt_tokens)s, %(completion_tokens)s, %(cost)s)
ON CONFLICT (account_id, day, key_id, model, price_id) DO UPDATE SET
    requests = daily.requests + EXCLUDED.requests,
    unbilled = daily.unbilled + EXCLUDED.unbilled,
    prompt_tokens = daily.prompt_tokens + EXCLUDED.prompt_tokens,
    completion_tokens = daily.completion_tokens + EXCLUDED.completion_tokens,
    cost = daily.cost + EXCLUDED.cost
"""


# --- Execution --------------------------------------------------------------------------------


def write(statement: str, **values: Any) -> int:
    """Execute a statement; return how many rows it wrote."""
    with connection.cursor() as cursor:
        cursor.execute(statement, {name: adapted(value) for name, value in values.items()})
        return int(cursor.rowcount)


def rows(statement: str, *values: Any, **named: Any) -> list[Any]:
    """Execute a statement; return the rows that it returns."""
    params: Any = [adapted(value) for value in values]
    with connection.cursor() as cursor:
        cursor.execute(statement, params or {name: adapted(one) for name, one in named.items()})
        return list(cursor.fetchall())


def adapted(value: Any) -> Any:
    """Return a value as the driver takes it. psycopg takes values as they are."""
    if connection.vendor == "postgresql":
        return value
    if isinstance(value, UUID):
        return value.hex
    if isinstance(value, datetime):
        return connection.ops.adapt_datetimefield_value(value)
    return value.isoformat() if isinstance(value, date) else value
