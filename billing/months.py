"""The months that a request counts in: UTC months, written as 2026-11."""

from datetime import date, datetime, timedelta

from django.conf import settings

# How long after the end of its response a request may be settled, by the journal or by recovery.
LATE = timedelta(hours=1)


def month_of(moment: date) -> str:
    return f"{moment:%Y-%m}"


def months_held(opened: datetime) -> list[str]:
    """Return the months in which a request that opens now can be settled.

    That is this month, and near its end also the next one. The request is held in each of them, so
    the row of each month limits that month by itself.
    """
    longest = timedelta(seconds=settings.UPSTREAM_TOTAL_SECONDS) + LATE
    return sorted({month_of(opened), month_of(opened + longest)})
