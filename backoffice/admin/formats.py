"""How operators read values: exact numbers with grouped digits, times to the second, and columns of
both for lists and pages."""

from collections.abc import Callable
from datetime import datetime
from decimal import Decimal
from typing import Any

from django.conf import settings
from django.contrib import admin

from billing.models import Budget

Text = Callable[[Any], str]
Column = Any

# --- Values ---------------------------------------------------------------------------------------


def money(amount: Decimal | int) -> str:
    """Return an amount exactly, with at least two decimals."""
    units, _point, decimals = f"{amount:,f}".partition(".")
    return f"{units}.{decimals.ljust(2, '0')}"


def tokens(count: int) -> str:
    return f"{count:,}"


def in_unit(amount: Decimal | int, unit: str) -> str:
    """Return one of a budget's numbers with its unit."""
    if unit == Budget.Unit.MONEY:
        return f"{money(amount)} {settings.CURRENCY}"
    return f"{amount:,} tokens"


def datetime_text(when: datetime | None, empty: str = "-") -> str:
    """Return a time to the second: several rows can belong to one minute."""
    return empty if when is None else f"{when:%Y-%m-%d %H:%M:%S}"


# --- Columns --------------------------------------------------------------------------------------


def column(name: str, label: str, text: Text, order: str | None = None) -> Column:
    """Return a column that is computed from a row; `order` is the field it is sorted by."""

    @admin.display(description=label, ordering=order)
    def show(row: Any) -> str:
        return text(row)

    show.__name__ = name
    return show


def number_column(name: str, label: str, text: Text, order: str | None = None) -> Column:
    """Return a column of numbers. The style sheet aligns columns by this prefix of their name."""
    return column(f"number_{name}", label, text, order)


def datetime_column(field: str, label: str, *, empty: str = "-", sortable: bool = True) -> Column:
    order = field if sortable else None
    return column(field, label, lambda row: datetime_text(getattr(row, field), empty), order)
