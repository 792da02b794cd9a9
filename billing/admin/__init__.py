"""The back-office's pages for prices, money and usage."""

from billing.admin.accounts import AccountAdmin
from billing.admin.budgets import BudgetAdmin, EntryAdmin, LimitChangeAdmin
from billing.admin.prices import ModelPriceAdmin
from billing.admin.usage import HoldAdmin, TokenUsageAdmin, UsageDailyAdmin

__all__ = [
    "AccountAdmin",
    "BudgetAdmin",
    "EntryAdmin",
    "HoldAdmin",
    "LimitChangeAdmin",
    "ModelPriceAdmin",
    "TokenUsageAdmin",
    "UsageDailyAdmin",
]
