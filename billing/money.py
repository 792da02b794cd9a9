"""Money is a whole number of the smallest unit: 1e-12 of the currency's unit, or 1e-9 where that
is worth little. Such a number is called pico, whatever its scale.

A price per 1,000 tokens with nine (or six) decimals is then a whole number per token, and sums, in
Python and in both databases, are exact. Django's DecimalField is a float on SQLite.
"""

import re
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from django import forms
from django.conf import settings
from django.db import models
from django.db.models.sql.compiler import SQLCompiler

if TYPE_CHECKING:
    _Integers = models.BigIntegerField[Decimal | int | str, Decimal]
else:
    _Integers = models.BigIntegerField

# Decimals of an amount. 64 bits hold 9.2 million units with twelve, 9.2 thousand million with nine.
SCALE, SCALE_OF_SMALL_UNITS = 12, 9
# Currencies without a minor unit, and those whose unit was worth less than about 3 US cents.
# Adding or removing one here makes `check` refuse the databases that are kept in it (billing.E004).
_SMALL = (
    "AFN ALL AMD AOA ARS BDT BIF BTN CDF CLP COP CRC CVE DJF DOP DZD EGP ETB GMD GNF GYD HTG "
    "HUF IDR INR IQD IRR ISK JMD JPY KES KGS KHR KMF KPW KRW KZT LAK LBP LKR LRD MGA MKD MMK "
    "MNT MRU MWK MZN NGN NIO NPR PHP PKR PYG RSD RUB RWF SDG SLL SOS SRD SSP SYP TRY TZS UAH "
    "UGX UYI UYU UZS VES VND VUV XAF XOF XPF YER ZWL"
)
SMALL_UNITS = frozenset(_SMALL.split())

# What a 64-bit integer holds.
MAX_PICO = 2**63 - 1
# The most that a budget is given. The rest is for what is spent beyond a limit: by requests that
# ran when it was reached, and by a model that read more than was held for.
MAX_LIMIT = 9 * 10**18

_AMOUNT = re.compile(r"-?[0-9]{1,12}(\.[0-9]{1,12})?")


def scale_of(currency: str) -> int:
    """Return how many decimals an amount of a currency has."""
    return SCALE_OF_SMALL_UNITS if currency in SMALL_UNITS else SCALE


def scale() -> int:
    """Return how many decimals an amount has here. `check` compares it with the database's."""
    return scale_of(settings.CURRENCY)


def to_pico(amount: Decimal | int | str) -> int:
    """Return an amount of the major unit in pico; raise ValueError if it is finer or too large."""
    places = scale()
    text = (f"{amount:f}" if isinstance(amount, Decimal) else str(amount)).strip()
    units, _point, decimals = text.lstrip("-").partition(".")
    if not _AMOUNT.fullmatch(text) or len(decimals) > places:
        raise ValueError(f"'{text}' is not an amount with at most {places} decimals.")
    pico = int(units + decimals.ljust(places, "0"))
    if pico > MAX_PICO:
        raise ValueError(f"'{text}' is too large.")
    return -pico if text.startswith("-") else pico


def from_pico(pico: int) -> Decimal:
    """Return pico as an exact amount of the major unit, without trailing zeros."""
    amount = Decimal(pico).scaleb(-scale())
    return amount.quantize(Decimal(1)) if amount == int(amount) else amount.normalize()


class MoneyField(_Integers):
    """An amount: Decimal in Python, pico in the database."""

    description = "Money, exact"

    def from_db_value(self, value: int | None, *_args: Any) -> Decimal | None:
        return None if value is None else from_pico(int(value))

    def to_python(self, value: Any) -> Decimal | None:
        return None if value is None else from_pico(to_pico(value))

    def get_prep_value(self, value: Any) -> Any:
        if value is None or hasattr(value, "resolve_expression"):
            return value
        return to_pico(value)

    def formfield(self, **kwargs: Any) -> forms.Field | None:
        return forms.DecimalField(**{"decimal_places": scale(), "max_digits": 24, **kwargs})


class ExactSum(models.Sum):
    """A sum of amounts that may leave 64 bits. PostgreSQL's may; SQLite's raises an error, so there
    the thousand millions and the rest are summed apart, and put together here."""

    _PART = 10**9

    def as_sqlite(self, compiler: SQLCompiler, connection: Any, **extra: Any) -> tuple[str, Any]:
        template = (
            f"SUM(%(expressions)s / {self._PART}) || ' ' || SUM(%(expressions)s %%%% {self._PART})"
        )
        sql, params = super().as_sql(compiler, connection, template=template, **extra)
        return sql, (*params, *params)

    @property
    def convert_value(self) -> Any:
        return self._together

    @classmethod
    def _together(cls, value: Any, _expression: Any, _connection: Any) -> int | None:
        if not isinstance(value, str):
            return None if value is None else int(value)
        high, low = value.split(" ")
        return int(high) * cls._PART + int(low)
