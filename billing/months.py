"""Which months a request counts in. UTC months, written as 2026-11."""

from datetime import date, datetime, timedelta

from django.conf import settings

# How long a settlement may wait beyond the end of its answer, in a journal or as an orphan.
LATE = timedelta(hours=1)


def month_of(moment: date) -> str:
    return f"{moment:%Y-%m}"


def months_held(opened: datetime) -> list[str]:
    """Return the months in which a request may be settled that is opened now: this one, and towards
    its end the next. It is held in each of them, so that each row alone limits its month."""
    longest = timedelta(seconds=settings.UPSTREAM_TOTAL_SECONDS) + LATE
    return sorted({month_of(opened), month_of(opened + longest)})
