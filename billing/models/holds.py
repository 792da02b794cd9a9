"""Requests that are being served: their holds, and the idempotency keys of clients."""

from django.db import models
from django.db.models import Q

from accounts.models import Account, ApiKey
from billing.models.prices import ModelPrice
from billing.money import MoneyField


class Hold(models.Model):
    """The most that one request can use, reserved before the model server receives the request."""

    class State(models.TextChoices):
        OPEN = "open", "Open"
        SETTLED = "settled", "Settled"
        RELEASED = "released", "Released"
        EXPIRED = "expired", "Expired"
        # The hold expired while its request was still served. A second usage row has the rest.
        ADJUSTED = "adjusted", "Adjusted"

    request_id = models.UUIDField(primary_key=True)
    # The foreign keys have no index of their own, since each index costs a write per request.
    # `holds_by_account` serves the deletion of accounts. Keys and prices are never deleted.
    account = models.ForeignKey(Account, on_delete=models.PROTECT, related_name="+", db_index=False)
    key = models.ForeignKey(ApiKey, on_delete=models.PROTECT, related_name="+", db_index=False)
    price = models.ForeignKey(
        ModelPrice, on_delete=models.PROTECT, related_name="+", db_index=False
    )
    model = models.CharField(max_length=600)
    operation = models.CharField(max_length=20)
    amount = MoneyField()
    tokens = models.BigIntegerField(help_text="The most tokens the request can use.")
    prompt_estimate = models.BigIntegerField()
    # [budget, month] of each budget that holds the amount. A budget that is created later does not.
    held_in = models.JSONField(default=list)
    state = models.CharField(max_length=8, choices=State.choices, default=State.OPEN)
    progress = models.BigIntegerField(default=0, help_text="Tokens that were generated so far.")
    worker = models.CharField(max_length=200)
    # The database's clock, as in every other date here.
    opened_at = models.DateTimeField()
    lease_until = models.DateTimeField()
    # The end of the lease again, on the boot clock of the worker's machine (`clock.py`).
    lease_boot_ms = models.BigIntegerField(default=0)
    closed_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        ordering = ["-request_id"]
        constraints = [
            models.CheckConstraint(
                condition=Q(amount__gte=0, tokens__gte=0), name="hold_not_negative"
            )
        ]
        indexes = [
            models.Index(fields=["lease_until"], condition=Q(state="open"), name="open_holds"),
            models.Index(fields=["account", "state"], name="holds_by_account"),
        ]

    def __str__(self) -> str:
        return f"{self.request_id} ({self.state})"


class IdempotencyKey(models.Model):
    """The request that used a client's `Idempotency-Key`, kept for a day.

    Only digests are stored: neither the header nor the prompt.
    """

    api_key = models.ForeignKey(ApiKey, on_delete=models.PROTECT, related_name="+")
    digest = models.CharField(max_length=64)
    fingerprint = models.CharField(max_length=64)
    # Not a foreign key: an unused hold may be deleted before this row.
    request_id = models.UUIDField()
    expires_at = models.DateTimeField()

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["api_key", "digest"], name="one_request_per_key")
        ]
        indexes = [models.Index(fields=["expires_at"], name="idempotency_keys_by_age")]

    def __str__(self) -> str:
        return f"{self.digest[:8]} ({self.request_id})"
