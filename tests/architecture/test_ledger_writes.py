"""A guarded table is written by its writer alone, however the write is spelled."""

from collections.abc import Callable
from types import ModuleType

import pytest
from django.db import connection

from billing.models import Budget
from tests.architecture import ledger_writes
from tests.architecture.ledger_writes import ROOT, ForbiddenWrite
from tests.harness.callers import Caller

# Each is compiled as if it stood in billing/views.py.
FORBIDDEN = {
    "save of a row": "def write(budget): budget.save()",
    "update of a variable": "def write(budget): x = type(budget).objects.all(); x.update(spent=0)",
    "a related manager": "def write(budget): budget.account.budgets.update(spent=0)",
    "bulk update": "def write(budget): type(budget).objects.bulk_update([budget], ['spent'])",
    "delete of rows": "def write(budget): type(budget).objects.all()._raw_delete('default')",
    "raw SQL": (
        "from django.db import connection\n"
        "def write(budget):\n"
        "    with connection.cursor() as cursor:\n"
        "        cursor.execute('UPDATE billing_budget SET spent = 0')\n"
    ),
}


def planted(source: str, place: str) -> Callable[[Budget], None]:
    """Return the function `write` of a source, compiled as if it stood in a file of the project."""
    module = ModuleType("planted")
    exec(compile(source, str(ROOT / place), "exec"), module.__dict__)
    write: Callable[[Budget], None] = module.write
    return write


@pytest.mark.parametrize("spelling", FORBIDDEN)
def test_a_view_that_writes_the_ledger_turns_the_suite_red(spelling: str, alice: Caller) -> None:
    with pytest.raises(ForbiddenWrite, match=r"billing/views\.py writes billing_budget"):
        planted(FORBIDDEN[spelling], "billing/views.py")(alice.wallet)


def test_the_ledger_may_write_its_tables(alice: Caller) -> None:
    planted(FORBIDDEN["save of a row"], "billing/ledger.py")(alice.wallet)


def test_every_connection_of_the_suite_is_inspected(alice: Caller) -> None:
    assert ledger_writes.inspect in connection.execute_wrappers
