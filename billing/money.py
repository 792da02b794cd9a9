"""Money is a whole number of pico-units: 1e-12 of the currency's major unit.

A price per 1,000 tokens with nine decimals is then a whole number per token, and sums, in Python
and in both databases, are exact. Django's DecimalField is a float on SQLite.
"""

import re
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from django import forms
from django.db import models

if TYPE_CHECKING:
    _Integers = models.BigIntegerField[Decimal | int | str, Decimal]
else:
    _Integers = models.BigIntegerField

PICO = 12
PICO_PER_UNIT = 1_000_000_000_000
# What a 64-bit integer holds: 9.2 million units of the currency in one cell.
MAX_PICO = 2**63 - 1


def scale_of(currency: str) -> int:
    """Return how many decimals an amount of a currency has."""
    return PICO


_AMOUNT = re.compile(r"-?[0-9]{1,12}(\.[0-9]{1,12})?")


def to_pico(amount: Decimal | int | str) -> int:
    """Return an amount of the major unit in pico; raise ValueError if it is finer or too large."""
    text = f"{amount:f}" if isinstance(amount, Decimal) else str(amount)
    if not _AMOUNT.fullmatch(text.strip()):
        raise ValueError(f"'{text}' is not an amount with at most {PICO} decimals.")
    units, _point, decimals = text.strip().lstrip("-").partition(".")
    pico = int(units) * PICO_PER_UNIT + int(decimals.ljust(PICO, "0"))
    if pico > MAX_PICO:
        raise ValueError(f"'{text}' is too large.")
    return -pico if text.strip().startswith("-") else pico


def from_pico(pico: int) -> Decimal:
    """Return pico as an exact amount of the major unit, without trailing zeros."""
    amount = Decimal(pico).scaleb(-PICO)
    return amount.quantize(Decimal(1)) if amount == int(amount) else amount.normalize()


class MoneyField(_Integers):
    """An amount: Decimal in Python, pico in the database."""

    description = "Money, exact to 1e-12"

    def from_db_value(self, value: int | None, *_args: Any) -> Decimal | None:
        return None if value is None else from_pico(int(value))

    def to_python(self, value: Any) -> Decimal | None:
        return None if value is None else from_pico(to_pico(value))

    def get_prep_value(self, value: Any) -> Any:
        if value is None or hasattr(value, "resolve_expression"):
            return value
        return to_pico(value)

    def formfield(self, **kwargs: Any) -> forms.Field | None:
        return forms.DecimalField(**{"decimal_places": PICO, "max_digits": 24, **kwargs})
