"""What a database was set up for: its currency, the scale of its amounts, and which database it is.

Written once, by the first `migrate`. The currency gives every amount its meaning, and the scale its
size; so neither can be changed under amounts that are there.
"""

import functools
from typing import Any
from uuid import UUID

from django.conf import settings
from django.db import connections

from billing import money
from billing.models import BillingConfig

ONLY_ROW = 1


def write_after_migrate(*, using: str, **_kwargs: Any) -> None:
    """Write the row unless it is there. `migrate billing zero` leaves no table to write to."""
    if not has_table(using):
        return
    BillingConfig.objects.using(using).get_or_create(
        pk=ONLY_ROW,
        defaults={
            "currency": settings.CURRENCY,
            "scale": money.scale_of(settings.CURRENCY),
        },
    )


def read(using: str = "default") -> BillingConfig | None:
    """Return the row; None in a database that is not migrated."""
    if not has_table(using):
        return None
    return BillingConfig.objects.using(using).filter(pk=ONLY_ROW).first()


def has_table(using: str) -> bool:
    return BillingConfig._meta.db_table in connections[using].introspection.table_names()


@functools.cache
def database_id() -> UUID:
    """Return which database this process writes to; read once, since a process keeps to one."""
    return BillingConfig.objects.get(pk=ONLY_ROW).database_id
