"""Budgets: wallets and caps, what they have spent and hold, and the changes of their limits."""

from decimal import Decimal
from typing import Self

from django.conf import settings
from django.db import models
from django.db.models import Q

from accounts.models import Account, ApiKey
from billing.money import from_units


class BudgetQuerySet(models.QuerySet["Budget"]):
    def wallets(self) -> Self:
        """Return the prepaid wallets. An account has one, or none if it is postpaid."""
        return self.filter(key=None, unit=Budget.Unit.MONEY, window=Budget.Window.TOTAL)

    def binding(self, account_id: int, key_id: int) -> Self:
        """Return the budgets that limit a key: its own and its account's, in locking order."""
        of_account = Q(account_id=account_id) & (Q(key=None) | Q(key_id=key_id))
        return self.filter(of_account).order_by("id")


class Budget(models.Model):
    """A limit of an account or of one of its keys: a wallet, or a cap of money or tokens.

    `limit`, `spent` and `held` are smallest units or tokens, depending on `unit`. A wallet's limit
    is the sum of its entries. A monthly cap counts `spent` and `held` in its `BudgetPeriod` rows.
    """

    class Unit(models.TextChoices):
        MONEY = "money", "Money"
        TOKENS = "tokens", "Tokens"

    class Window(models.TextChoices):
        TOTAL = "total", "All time"
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

    objects = BudgetQuerySet.as_manager()

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
        """Return one of the budget's numbers as people read it: in the major unit, or tokens."""
        return from_units(value) if self.unit == self.Unit.MONEY else value

    @property
    def left(self) -> int:
        return self.limit - self.spent - self.held


class LimitChange(models.Model):
    """A change of a budget's limit, or the creation of a budget. Append-only.

    The last change of a cap is its limit. A wallet has one row, from its creation; after that its
    entries change its limit.
    """

    budget = models.ForeignKey(Budget, on_delete=models.PROTECT, related_name="changes")
    old = models.BigIntegerField(null=True, help_text="Empty when the budget was created.")
    new = models.BigIntegerField()
    changed_by = models.ForeignKey(
        settings.AUTH_USER_MODEL, null=True, on_delete=models.PROTECT, related_name="+"
    )
    author = models.CharField(
        max_length=200, help_text="The operator's name at that time, or the user of the command."
    )
    changed_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ["-id"]
        verbose_name = "limit change"
        constraints = [
            models.UniqueConstraint(
                fields=["budget"], condition=Q(old=None), name="one_creation_per_budget"
            )
        ]

    def __str__(self) -> str:
        return f"{self.budget} is {self.budget.amount(self.new):f}"


class BudgetPeriod(models.Model):
    """What a monthly cap has spent and holds in one month.

    Both are in one row. PostgreSQL, after it has waited for a row's lock, reads that row again and
    no other one, so concurrent requests could pass a limit that is checked against two rows.
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
