"""The two clocks by which the books go; a gateway host's wall clock is neither.

The database's clock dates every hold, lease, usage row and month: all who share a database share
it. SQLite runs inside this process, so its clock is this machine's.

CLOCK_BOOTTIME measures leases between processes of one machine. Nobody can set it, so it is right
also where the database runs on this machine and its clock steps with everything else's.
"""

import time
from datetime import datetime, timedelta
from typing import Any

from django.db import connection
from django.db.models import DateTimeField
from django.db.models.expressions import RawSQL
from django.utils import timezone

NOTHING = timedelta()


def now_sql(later: timedelta = NOTHING) -> tuple[str, list[Any]]:
    """Return the database's now, or a moment after it, as SQL with its parameters."""
    if connection.vendor == "postgresql":
        return "(statement_timestamp() + %s)", [later]
    return "%s", [connection.ops.adapt_datetimefield_value(timezone.now() + later)]


def now(later: timedelta = NOTHING) -> RawSQL:
    """Return the database's now, or a moment after it, as an expression."""
    sql, params = now_sql(later)
    return RawSQL(sql, params, output_field=DateTimeField())  # noqa: S611  # No input is in it.


def read() -> datetime:
    """Ask the database what time it is. Not on a request's way: it costs a round trip."""
    if connection.vendor != "postgresql":
        return timezone.now()
    with connection.cursor() as cursor:
        cursor.execute("SELECT statement_timestamp()")
        found: datetime = cursor.fetchone()[0]
    return found


def since_boot() -> int:
    """Return milliseconds since this machine started, the time it was suspended included."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000
