"""Prices, budgets, holds, usage rows and entries.

- Price: what a token of a model costs. Each version is a row that never changes.
- Budget: a limit of an account or key, with what is spent and held of it.
- Hold: the most that one request can use, reserved before the model server receives it.
- Usage row: what the request used. It is the evidence of the bill.
- Entry: money that an operator put into a wallet or took out of it.

Prices and amounts are whole numbers of smallest units (`money.py`). Triggers in the database guard
the rows that must never change (migration 0002).
"""

from billing.configuration import BillingConfig
from billing.models.budgets import Budget, BudgetPeriod, BudgetQuerySet, LimitChange
from billing.models.entries import Entry
from billing.models.holds import Hold, IdempotencyKey
from billing.models.prices import ModelPrice, ModelPriceQuerySet
from billing.models.usage import TokenUsage, UsageDaily

__all__ = [
    "BillingConfig",
    "Budget",
    "BudgetPeriod",
    "BudgetQuerySet",
    "Entry",
    "Hold",
    "IdempotencyKey",
    "LimitChange",
    "ModelPrice",
    "ModelPriceQuerySet",
    "TokenUsage",
    "UsageDaily",
]
