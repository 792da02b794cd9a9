"""What a database was set up for: its currency, the scale of its amounts, and which database it is.

Written once, by the first `migrate`. The currency gives every amount its meaning, and the scale its
size; so neither can be changed under amounts that are there.
"""

import uuid
from typing import Any
from uuid import UUID

from django.conf import settings
from django.db import connections, models
from django.db.models import Q

from billing import money

ONLY_ROW = 1


class BillingConfig(models.Model):
    """What this database was set up for, in its only row. Written by the first `migrate`."""

    id = models.PositiveSmallIntegerField(primary_key=True, default=1)
    currency = models.CharField(max_length=3)
    scale = models.PositiveSmallIntegerField(help_text="Amounts are whole numbers of 10^-scale.")
    # Random, and kept by backups: tells this database from another one behind the same address.
    database_id = models.UUIDField(default=uuid.uuid4)
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        constraints = [models.CheckConstraint(condition=Q(id=1), name="one_billing_config")]

    def __str__(self) -> str:
        return f"{self.currency}, scale {self.scale}, database {self.database_id}"


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


def database_id() -> UUID:
    """Return which database this is. Not remembered: it may be exchanged, or get a new id."""
    return BillingConfig.objects.get(pk=ONLY_ROW).database_id


def renew_database_id() -> UUID:
    """Make a copy a database of its own, which is not taken for the one it was copied from."""
    new = uuid.uuid4()
    BillingConfig.objects.filter(pk=ONLY_ROW).update(database_id=new)
    return new
