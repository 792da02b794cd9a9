"""Numbers as operators read them: exact, with digits in groups of three."""

from decimal import Decimal

from django.conf import settings

from billing.models import Budget


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
