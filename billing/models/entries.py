"""Entries: payments, grants and corrections of wallets. `entries.py` of billing writes them."""

from django.conf import settings
from django.db import models
from django.db.models import Q

from accounts.models import Account
from billing.money import MoneyField


class Entry(models.Model):
    """Money that an operator put into a wallet or took out of it. Append-only."""

    class Kind(models.TextChoices):
        TOP_UP = "top_up", "Top-up"
        GRANT = "grant", "Grant"
        ADJUSTMENT = "adjustment", "Adjustment"
        REFUND = "refund", "Refund"

    account = models.ForeignKey(Account, on_delete=models.PROTECT, related_name="entries")
    kind = models.CharField(max_length=10, choices=Kind.choices)
    amount = MoneyField(help_text="Positive puts money in, negative takes it out.")
    reason = models.CharField(max_length=200)
    reference = models.CharField(  # noqa: DJ001  # Empty strings would not be unique.
        max_length=100,
        null=True,
        unique=True,
        help_text="The payment's id, or its line on the bank statement. It can be posted once.",
    )
    created_by = models.ForeignKey(
        settings.AUTH_USER_MODEL, null=True, blank=True, on_delete=models.PROTECT, related_name="+"
    )
    author = models.CharField(
        max_length=200, help_text="The operator's name at that time, or the user of the command."
    )
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ["-id"]
        verbose_name_plural = "entries"
        constraints = [
            models.CheckConstraint(condition=~Q(reference=""), name="entry_reference_not_empty"),
            models.CheckConstraint(condition=~Q(amount=0), name="entry_amount_not_zero"),
            models.CheckConstraint(condition=~Q(reason=""), name="entry_reason_not_empty"),
        ]

    def __str__(self) -> str:
        return f"{self.get_kind_display()} of {self.amount:f}"
