"""The operators' pages: Django's admin for the models of every app.

Nothing is deleted here, because bills and logs refer to every row. Forms write through the module
that owns the table, such as `accounts.customers` or `billing.ledger`.
"""

from backoffice.admin import site
from backoffice.admin.budgets import BudgetAdmin, EntryAdmin, LimitChangeAdmin
from backoffice.admin.customers import AccountAdmin
from backoffice.admin.keys import ApiKeyAdmin
from backoffice.admin.operators import GroupAdmin, UserAdmin
from backoffice.admin.prices import ModelPriceAdmin
from backoffice.admin.usage import HoldAdmin, TokenUsageAdmin, UsageDailyAdmin

__all__ = [
    "AccountAdmin",
    "ApiKeyAdmin",
    "BudgetAdmin",
    "EntryAdmin",
    "GroupAdmin",
    "HoldAdmin",
    "LimitChangeAdmin",
    "ModelPriceAdmin",
    "TokenUsageAdmin",
    "UsageDailyAdmin",
    "UserAdmin",
]

site.configure()
