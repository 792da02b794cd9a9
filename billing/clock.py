"""The two clocks that billing uses. The wall clock of a gateway host is neither of them.

The database's clock dates every hold, lease, usage row and month, because all gateways of a
database share it. SQLite runs inside this process, so its clock is this machine's.

CLOCK_BOOTTIME measures leases between processes of one machine. It cannot be set, so it stays
correct when the database runs on this machine and the wall clock is changed.
"""

import time
from datetime import datetime, timedelta
from typing import Any

from django.db import connection
from django.db.models import DateTimeField
from django.db.models.expressions import RawSQL
from django.utils import timezone

ZERO = timedelta()


def now_sql(later: timedelta = ZERO) -> tuple[str, list[Any]]:
    """Return the database's now, or a later time, as SQL with its parameters."""
    if connection.vendor == "postgresql":
        return "(statement_timestamp() + %s)", [later]
    return "%s", [connection.ops.adapt_datetimefield_value(timezone.now() + later)]


def now(later: timedelta = ZERO) -> RawSQL:
    """Return the database's now, or a later time, as an expression."""
    sql, params = now_sql(later)
    return RawSQL(sql, params, output_field=DateTimeField())  # noqa: S611  # It contains no input.


def read() -> datetime:
    """Return the database's time. It costs a query, so the hot path does not use it."""
    if connection.vendor != "postgresql":
        return timezone.now()
    with connection.cursor() as cursor:
        cursor.execute("SELECT statement_timestamp()")
        time_of_database: datetime = cursor.fetchone()[0]
    return time_of_database


def since_boot() -> int:
    """Return milliseconds since this machine started, including the time it was suspended."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000
