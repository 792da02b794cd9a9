"""Check for every statement of the test suite that each table is written by its writer alone.

The statement is inspected where the database receives it, so every spelling is seen: `save`,
`update` on a variable, a related manager, raw SQL. A source search sees one spelling only.
"""

import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

from django.apps import apps
from django.db.backends.base.base import BaseDatabaseWrapper

ROOT = Path(__file__).resolve().parents[2]
# Each table's writers. Tests may write any table: they set the scene.
WRITERS = {
    "billing.Budget": ("billing/ledger.py", "billing/budgets.py", "billing/entries.py"),
    "billing.BudgetPeriod": ("billing/ledger.py", "billing/budgets.py"),
    "billing.LimitChange": ("billing/ledger.py",),
    "billing.Hold": ("billing/ledger.py",),
    "billing.TokenUsage": ("billing/ledger.py",),
    "billing.UsageDaily": ("billing/ledger.py",),
    "billing.Entry": ("billing/entries.py",),
    "billing.ModelPrice": ("billing/price_book.py",),
    "billing.BillingConfig": ("billing/configuration.py",),
    "billing.IdempotencyKey": ("billing/idempotency.py",),
    "accounts.Account": ("accounts/customers.py",),
    "accounts.Membership": ("accounts/customers.py",),
    "accounts.ApiKey": ("accounts/keys.py", "accounts/last_used.py"),
    "accounts.LoginCount": ("accounts/login_guard.py",),
}
# Our database backends are on the stack of every statement and decide none.
TRANSPARENT = ("config/postgresql/", "config/sqlite/")
WRITE = re.compile(r'\s*(?:INSERT\s+INTO|UPDATE|DELETE\s+FROM)\s+"?(\w+)"?', re.IGNORECASE)


class ForbiddenWrite(AssertionError):
    """A table was written by code that is not its writer."""


def install(connection: BaseDatabaseWrapper, **_signal: Any) -> None:
    """Inspect everything that a new connection executes."""
    if inspect not in connection.execute_wrappers:
        connection.execute_wrappers.append(inspect)


def inspect(execute: Callable[..., Any], sql: Any, params: Any, many: bool, context: Any) -> Any:
    """Execute a statement, unless it writes a guarded table from outside its writer."""
    written = WRITE.match(str(sql))
    if written and (writers := _writers().get(written[1])):
        source = _nearest_source(sys._getframe(1))
        if not source.startswith("tests/") and source not in writers:
            raise ForbiddenWrite(f"{source} writes {written[1]}; only {' and '.join(writers)} may.")
    return execute(sql, params, many, context)


def _writers() -> dict[str, tuple[str, ...]]:
    return {apps.get_model(name)._meta.db_table: files for name, files in WRITERS.items()}


def _nearest_source(frame: FrameType | None) -> str:
    """Return the innermost file of this project on the stack, relative to its root."""
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if path.is_relative_to(ROOT) and ".venv" not in path.parts:
            source = str(path.relative_to(ROOT))
            if not source.startswith(TRANSPARENT):
                return source
        frame = frame.f_back
    return "an unknown place"
