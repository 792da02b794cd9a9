"""Prices, limits, holds and the rows that are the bill.

Written by `ledger.py` and `prices.py` alone.

price: what a token costs, one row per version, never changed. budget: a limit, with what is spent
and held of it. hold: what one request may take, set aside before it is answered. usage row: what
it took, and the evidence of the bill. entry: money put in or taken out by a person.

Prices and amounts are smallest units (`money.py`), tokens are tokens; both are whole numbers. What
must never change is guarded by triggers in the database itself (migration 0002).
"""

from decimal import Decimal

from django.conf import settings
from django.db import models
from django.db.models import F, Q

from accounts.models import Account, ApiKey
from billing import pricing
from billing.configuration import BillingConfig as BillingConfig
from billing.money import MoneyField, from_units
from gateway.metering import CountSource, Outcome

OUTCOMES = [(outcome.value, outcome.value.replace("_", " ")) for outcome in Outcome]
SOURCES = [(source.value, source.value) for source in CountSource]


class ModelPrice(models.Model):
    """One version of a model's price, in force from a moment until the next version's."""

    model = models.CharField(max_length=600, help_text="Canonical name, such as llama3:latest.")
    effective_from = models.DateTimeField()
    prompt_price = models.BigIntegerField(help_text="Smallest units per prompt token.")
    completion_price = models.BigIntegerField(help_text="Smallest units per completion token.")
    created_at = models.DateTimeField(auto_now_add=True)
    created_by = models.ForeignKey(
        settings.AUTH_USER_MODEL, null=True, blank=True, on_delete=models.PROTECT, related_name="+"
    )
    author = models.CharField(max_length=200, help_text="Their name then, or whose command it was.")

    class Meta:
        db_table = "model_prices"
        ordering = ["model", "-effective_from"]
        constraints = [
            models.UniqueConstraint(fields=["model", "effective_from"], name="one_price_at_a_time"),
            models.CheckConstraint(
                condition=Q(prompt_price__gte=0, completion_price__gte=0),
                name="prices_not_negative",
            ),
        ]

    def __str__(self) -> str:
        per_1k = f"{self.prompt_per_1k:f} / {self.completion_per_1k:f}"
        return f"{self.model}: {per_1k} per 1K from {self.effective_from:%F %R}"

    @property
    def rates(self) -> pricing.Rates:
        return pricing.Rates(self.prompt_price, self.completion_price)

    @property
    def prompt_per_1k(self) -> Decimal:
        return pricing.per_1k(self.prompt_price)

    @property
    def completion_per_1k(self) -> Decimal:
        return pricing.per_1k(self.completion_price)


class Budget(models.Model):
    """A limit of an account, or of one of its keys: a wallet, a monthly cap of money or tokens.

    `limit`, `spent` and `held` are smallest units or tokens, by `unit`. A wallet's limit is
    everything ever paid in. What a monthly budget has spent and held is in its `BudgetPeriod` rows.
    """

    class Unit(models.TextChoices):
        MONEY = "money", "Money"
        TOKENS = "tokens", "Tokens"

    class Window(models.TextChoices):
        TOTAL = "total", "For ever"
        MONTH = "month", "Each month"

    account = models.ForeignKey(Account, on_delete=models.PROTECT, related_name="budgets")
    key = models.ForeignKey(
        ApiKey, null=True, blank=True, on_delete=models.PROTECT, related_name="budgets"
    )
    unit = models.CharField(max_length=6, choices=Unit.choices, default=Unit.MONEY)
    window = models.CharField(max_length=5, choices=Window.choices, default=Window.TOTAL)
    limit = models.BigIntegerField(default=0)
    spent = models.BigIntegerField(default=0)
    held = models.BigIntegerField(default=0)

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["account", "unit", "window"],
                condition=Q(key=None),
                name="one_budget_of_a_kind_per_account",
            ),
            models.UniqueConstraint(
                fields=["key", "unit", "window"],
                condition=Q(key__isnull=False),
                name="one_budget_of_a_kind_per_key",
            ),
            models.CheckConstraint(condition=Q(held__gte=0), name="held_not_negative"),
        ]

    def __str__(self) -> str:
        return f"{self.kind} of {self.key or self.account}"

    @property
    def is_wallet(self) -> bool:
        return self.window == self.Window.TOTAL and self.unit == self.Unit.MONEY and not self.key_id

    @property
    def kind(self) -> str:
        if self.window == self.Window.TOTAL:
            return "wallet" if self.is_wallet else f"total {self.unit} cap"
        return f"monthly {self.unit} cap"

    def amount(self, value: int) -> Decimal | int:
        """Return one of the budget's numbers in the unit people read."""
        return from_units(value) if self.unit == self.Unit.MONEY else value

    @property
    def left(self) -> int:
        return self.limit - self.spent - self.held


class LimitChange(models.Model):
    """Who opened a budget, or changed its limit; the last change says what it is. A wallet has one
    row, of its opening: after it, entries move its limit. Append-only."""

    budget = models.ForeignKey(Budget, on_delete=models.PROTECT, related_name="changes")
    old = models.BigIntegerField(null=True, help_text="Empty where the budget was opened.")
    new = models.BigIntegerField()
    changed_by = models.ForeignKey(
        settings.AUTH_USER_MODEL, null=True, on_delete=models.PROTECT, related_name="+"
    )
    author = models.CharField(max_length=200, help_text="Their name then, or whose command it was.")
    changed_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ["-id"]
        verbose_name = "change of a limit"
        verbose_name_plural = "changes of limits"
        constraints = [
            models.UniqueConstraint(
                fields=["budget"], condition=Q(old=None), name="one_opening_per_budget"
            )
        ]

    def __str__(self) -> str:
        return f"{self.budget} is {self.budget.amount(self.new):f}"


class BudgetPeriod(models.Model):
    """What is spent and held of a monthly budget in one month.

    Both in one row: after waiting for a row's lock PostgreSQL reads that row again and no other, so
    a limit that is checked against two rows is passed by requests at once.
    """

    budget = models.ForeignKey(Budget, on_delete=models.PROTECT, related_name="periods")
    period = models.CharField(max_length=7, help_text="A UTC month, such as 2026-11.")
    spent = models.BigIntegerField(default=0)
    held = models.BigIntegerField(default=0)

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["budget", "period"], name="one_row_per_month"),
            models.CheckConstraint(condition=Q(held__gte=0), name="month_held_not_negative"),
        ]

    def __str__(self) -> str:
        return f"{self.budget} in {self.period}"


class Hold(models.Model):
    """What one request may take at most, set aside before the model server is asked."""

    class State(models.TextChoices):
        OPEN = "open", "Open"
        SETTLED = "settled", "Settled"
        RELEASED = "released", "Released"
        EXPIRED = "expired", "Expired"
        # It was thought to be nobody's and was served: a second row has the difference.
        ADJUSTED = "adjusted", "Adjusted"

    request_id = models.UUIDField(primary_key=True)
    # No index of a foreign key's own: one of several columns begins with the account, which is what
    # its deletion asks for, and keys and prices are never deleted. Each costs a write per request.
    account = models.ForeignKey(Account, on_delete=models.PROTECT, related_name="+", db_index=False)
    key = models.ForeignKey(ApiKey, on_delete=models.PROTECT, related_name="+", db_index=False)
    price = models.ForeignKey(
        ModelPrice, on_delete=models.PROTECT, related_name="+", db_index=False
    )
    model = models.CharField(max_length=600)
    operation = models.CharField(max_length=20)
    amount = MoneyField()
    tokens = models.BigIntegerField(help_text="The most tokens the request may take.")
    prompt_estimate = models.BigIntegerField()
    # [budget, month] of each that gave, so that one opened meanwhile is not asked to take back.
    held_in = models.JSONField(default=list)
    state = models.CharField(max_length=8, choices=State.choices, default=State.OPEN)
    progress = models.BigIntegerField(default=0, help_text="Tokens known to be produced.")
    worker = models.CharField(max_length=200)
    # On the database's clock, as everything dated here.
    opened_at = models.DateTimeField()
    lease_until = models.DateTimeField()
    # The same moment on the clock of the worker's machine that nobody can set (`clock.py`).
    lease_boot_ms = models.BigIntegerField(default=0)
    closed_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        ordering = ["-request_id"]
        constraints = [
            models.CheckConstraint(condition=Q(amount__gte=0, tokens__gte=0), name="holds_hold")
        ]
        indexes = [
            models.Index(fields=["lease_until"], condition=Q(state="open"), name="open_holds"),
            models.Index(fields=["account", "state"], name="holds_by_account"),
        ]

    def __str__(self) -> str:
        return f"{self.request_id} ({self.state})"


class IdempotencyKey(models.Model):
    """Which request bears a client's `Idempotency-Key`, for a day. Digests only: what a client put
    into the header, and its prompt, are not stored."""

    api_key = models.ForeignKey(ApiKey, on_delete=models.PROTECT, related_name="+")
    digest = models.CharField(max_length=64)
    fingerprint = models.CharField(max_length=64)
    # No foreign key: a hold that was never used may be removed before this.
    request_id = models.UUIDField()
    expires_at = models.DateTimeField()

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["api_key", "digest"], name="one_request_per_key")
        ]
        indexes = [models.Index(fields=["expires_at"], name="idempotency_keys_by_age")]

    def __str__(self) -> str:
        return f"{self.digest[:8]} ({self.request_id})"


class TokenUsage(models.Model):
    """What one request took: the evidence of the bill. Append-only, one row per request.

    A request that was settled as expired and went on has a second row, whose `adjusts` names the
    first. It has an id of its own, and the difference in tokens and cost, which may be negative.
    """

    request_id = models.UUIDField(unique=True)
    adjusts = models.UUIDField(null=True, blank=True, editable=False)
    # No index of a foreign key's own, as in Hold.
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
    billed = models.BooleanField(help_text="Whether the answer is charged; if not it cost nothing.")
    cost = MoneyField()
    outcome = models.CharField(max_length=20, choices=OUTCOMES)
    count_source = models.CharField(max_length=10, choices=SOURCES)
    started_at = models.DateTimeField()
    settled_at = models.DateTimeField()
    day = models.DateField(help_text="The UTC day of settling; the bill's day.")

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
                fields=["adjusts"], condition=Q(adjusts__isnull=False), name="adjusted_once"
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
    """The roll-up of usage rows, written with them. Tokens are of billed rows only."""

    # No index of a foreign key's own, as in Hold.
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


class Entry(models.Model):
    """Money put into or taken out of a wallet by a person: who, how much, why. Append-only."""

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
        help_text="Of the payment, such as its id or a line of the bank's: posted once only.",
    )
    created_by = models.ForeignKey(
        settings.AUTH_USER_MODEL, null=True, blank=True, on_delete=models.PROTECT, related_name="+"
    )
    author = models.CharField(max_length=200, help_text="Their name then, or whose command it was.")
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ["-id"]
        verbose_name_plural = "entries"
        constraints = [
            models.CheckConstraint(condition=~Q(reference=""), name="references_say_something"),
            models.CheckConstraint(condition=~Q(amount=0), name="entries_move_money"),
            models.CheckConstraint(condition=~Q(reason=""), name="entries_have_a_reason"),
        ]

    def __str__(self) -> str:
        return f"{self.get_kind_display()} of {self.amount:f}"
