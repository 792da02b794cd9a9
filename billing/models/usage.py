"""Usage rows, which are the evidence of the bill, and their daily roll-up."""

from decimal import Decimal

from django.db import models
from django.db.models import F, Q

from accounts.models import Account, ApiKey
from billing.models.prices import ModelPrice
from billing.money import MoneyField
from gateway.metering import CountSource, Outcome

OUTCOMES = [(outcome.value, outcome.value.replace("_", " ")) for outcome in Outcome]
SOURCES = [(source.value, source.value) for source in CountSource]


class TokenUsage(models.Model):
    """What one request used. Append-only, one row per request.

    A request that went on after it was settled as expired has a second row. Its `adjusts` is the
    `request_id` of the first row, its own `request_id` is new, and its tokens and cost are the
    difference, which can be negative.
    """

    request_id = models.UUIDField(unique=True)
    adjusts = models.UUIDField(null=True, blank=True, editable=False)
    # The foreign keys have no index of their own, as in Hold.
    account = models.ForeignKey(Account, on_delete=models.PROTECT, related_name="+", db_index=False)
    key = models.ForeignKey(ApiKey, on_delete=models.PROTECT, related_name="+", db_index=False)
    price = models.ForeignKey(
        ModelPrice, on_delete=models.PROTECT, related_name="+", db_index=False
    )
    model = models.CharField(max_length=600)
    operation = models.CharField(max_length=20)
    prompt_tokens = models.BigIntegerField()
    completion_tokens = models.BigIntegerField()
    prompt_price = models.BigIntegerField()
    completion_price = models.BigIntegerField()
    billed = models.BooleanField(help_text="Whether the request is charged. If not, it cost 0.")
    cost = MoneyField()
    outcome = models.CharField(max_length=20, choices=OUTCOMES)
    count_source = models.CharField(max_length=10, choices=SOURCES)
    started_at = models.DateTimeField()
    settled_at = models.DateTimeField()
    day = models.DateField(help_text="The UTC day on which the request was settled.")

    class Meta:
        db_table = "token_usages"
        ordering = ["-id"]
        verbose_name = "usage row"
        constraints = [
            models.CheckConstraint(
                condition=Q(adjusts__isnull=False)
                | Q(prompt_tokens__gte=0, completion_tokens__gte=0, cost__gte=0),
                name="usage_not_negative",
            ),
            models.UniqueConstraint(
                fields=["adjusts"], condition=Q(adjusts__isnull=False), name="one_adjustment"
            ),
            models.CheckConstraint(
                condition=Q(billed=False, cost=0)
                | Q(
                    billed=True,
                    cost=F("prompt_tokens") * F("prompt_price")
                    + F("completion_tokens") * F("completion_price"),
                ),
                name="cost_follows_from_row",
            ),
        ]
        indexes = [
            models.Index(fields=["account", "-id"], name="usage_by_account"),
            models.Index(fields=["key", "-id"], name="usage_by_key"),
            models.Index(fields=["day"], name="usage_by_day"),
        ]

    def __str__(self) -> str:
        return str(self.request_id)

    @property
    def total_tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens


class UsageDaily(models.Model):
    """The daily roll-up of usage rows, written with them. Tokens count billed rows only."""

    # The foreign keys have no index of their own, as in Hold.
    account = models.ForeignKey(Account, on_delete=models.PROTECT, related_name="+", db_index=False)
    day = models.DateField()
    key = models.ForeignKey(ApiKey, on_delete=models.PROTECT, related_name="+", db_index=False)
    model = models.CharField(max_length=600)
    price = models.ForeignKey(
        ModelPrice, on_delete=models.PROTECT, related_name="+", db_index=False
    )
    requests = models.BigIntegerField(default=0)
    unbilled = models.BigIntegerField(default=0)
    prompt_tokens = models.BigIntegerField(default=0)
    completion_tokens = models.BigIntegerField(default=0)
    cost = MoneyField(default=Decimal(0))

    class Meta:
        ordering = ["-day", "account", "model"]
        verbose_name = "day of usage"
        verbose_name_plural = "days of usage"
        constraints = [
            models.UniqueConstraint(
                fields=["account", "day", "key", "model", "price"], name="one_row_per_day_and_price"
            )
        ]
        indexes = [
            models.Index(fields=["day"], name="days_by_day"),
            models.Index(fields=["account", "-id"], name="days_by_account"),
        ]

    def __str__(self) -> str:
        return f"{self.account} {self.day} {self.model}"
