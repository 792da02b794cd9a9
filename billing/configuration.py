"""The configuration of a database: its currency, the scale of its amounts, and its id.

The first `migrate` writes it. Neither the currency nor the scale can change later, because all
stored amounts depend on them.
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
    """The configuration of this database, in the only row of its table."""

    id = models.PositiveSmallIntegerField(primary_key=True, default=1)
    currency = models.CharField(max_length=3)
    scale = models.PositiveSmallIntegerField(help_text="Amounts are whole numbers of 10^-scale.")
    # Random, and the same in a backup. It distinguishes databases that use the same URL.
    database_id = models.UUIDField(default=uuid.uuid4)
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        constraints = [models.CheckConstraint(condition=Q(id=1), name="one_billing_config")]

    def __str__(self) -> str:
        return f"{self.currency}, scale {self.scale}, database {self.database_id}"


def write_after_migrate(*, using: str, **_kwargs: Any) -> None:
    """Write the row unless it exists. After `migrate billing zero` there is no table."""
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
    """Return the row; None if the database is not migrated."""
    if not has_table(using):
        return None
    return BillingConfig.objects.using(using).filter(pk=ONLY_ROW).first()


def has_table(using: str) -> bool:
    return BillingConfig._meta.db_table in connections[using].introspection.table_names()


def database_id() -> UUID:
    """Return the id of this database. It is not cached, because it may change."""
    return BillingConfig.objects.get(pk=ONLY_ROW).database_id


def renew_database_id() -> UUID:
    """Give a copied database a new id, so that it is not taken for the original."""
    new = uuid.uuid4()
    BillingConfig.objects.filter(pk=ONLY_ROW).update(database_id=new)
    return new
