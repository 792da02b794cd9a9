"""Money as a whole number of smallest units: 1e-12 of the currency's major unit.

In currencies whose major unit is worth little (`SMALL_UNITS`) the smallest unit is 1e-9 of it.
`scale()` is the number of decimals: 12 or 9.

A price per 1,000 tokens with nine (or six) decimals is then a whole number per token, and sums are
exact in Python and in both databases. Django's DecimalField is a float on SQLite.
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

# Decimals of an amount. 64 bits hold amounts up to 9.2 million with 12, 9.2 billion with 9.
SCALE, SCALE_OF_SMALL_UNITS = 12, 9
# Currencies without a minor unit, and those whose major unit was worth less than about 3 US cents.
# If you add or remove one, `check` rejects existing databases in that currency (billing.E004).
_SMALL = (
    "AFN ALL AMD AOA ARS BDT BIF BTN CDF CLP COP CRC CVE DJF DOP DZD EGP ETB GMD GNF GYD HTG "
    "HUF IDR INR IQD IRR ISK JMD JPY KES KGS KHR KMF KPW KRW KZT LAK LBP LKR LRD MGA MKD MMK "
    "MNT MRU MWK MZN NGN NIO NPR PHP PKR PYG RSD RUB RWF SDG SLL SOS SRD SSP SYP TRY TZS UAH "
    "UGX UYI UYU UZS VES VND VUV XAF XOF XPF YER ZWL"
)
SMALL_UNITS = frozenset(_SMALL.split())

# What a 64-bit integer holds.
MAX_UNITS = 2**63 - 1
# The highest limit of a budget. The rest of the 64 bits is for amounts beyond a limit: of requests
# that ran when it was reached, and of a model that read more tokens than were held.
MAX_LIMIT = 9 * 10**18

_AMOUNT = re.compile(r"-?[0-9]{1,12}(\.[0-9]{1,12})?")


def scale_of(currency: str) -> int:
    """Return how many decimals an amount of a currency has."""
    return SCALE_OF_SMALL_UNITS if currency in SMALL_UNITS else SCALE


def scale() -> int:
    """Return how many decimals amounts have. `check` compares it with the database's scale."""
    return scale_of(settings.CURRENCY)


def to_units(amount: Decimal | int | str) -> int:
    """Return an amount of the major unit as smallest units, of which 10 ** `scale()` make one.

    Raises ValueError if the amount has more decimals than that, or does not fit 64 bits.
    """
    places = scale()
    text = (f"{amount:f}" if isinstance(amount, Decimal) else str(amount)).strip()
    whole, _point, decimals = text.lstrip("-").partition(".")
    if not _AMOUNT.fullmatch(text) or len(decimals) > places:
        raise ValueError(f"'{text}' is not an amount with at most {places} decimals.")
    units = int(whole + decimals.ljust(places, "0"))
    if units > MAX_UNITS:
        raise ValueError(f"'{text}' is too large.")
    return -units if text.startswith("-") else units


def from_units(units: int) -> Decimal:
    """Return smallest units (10 ** `scale()` to one) as an amount of the major unit.

    The amount is exact and has no trailing zeros.
    """
    amount = Decimal(units).scaleb(-scale())
    return amount.quantize(Decimal(1)) if amount == int(amount) else amount.normalize()


class MoneyField(_Integers):
    """An amount: Decimal in Python, smallest units in the database."""

    description = "Money, exact"

    def from_db_value(self, value: int | None, *_args: Any) -> Decimal | None:
        return None if value is None else from_units(int(value))

    def to_python(self, value: Any) -> Decimal | None:
        return None if value is None else from_units(to_units(value))

    def get_prep_value(self, value: Any) -> Any:
        if value is None or hasattr(value, "resolve_expression"):
            return value
        return to_units(value)

    def formfield(self, **kwargs: Any) -> forms.Field | None:
        return forms.DecimalField(**{"decimal_places": scale(), "max_digits": 24, **kwargs})


class ExactSum(models.Sum):
    """A sum of amounts that may exceed 64 bits.

    PostgreSQL's SUM may exceed them. SQLite's raises an error, so there the billions and the
    remainders are summed separately and combined in Python.
    """

    _PART = 10**9

    def as_sqlite(self, compiler: SQLCompiler, connection: Any, **extra: Any) -> tuple[str, Any]:
        template = (
            f"SUM(%(expressions)s / {self._PART}) || ' ' || SUM(%(expressions)s %%%% {self._PART})"
        )
        sql, params = super().as_sql(compiler, connection, template=template, **extra)
        return sql, (*params, *params)

    @property
    def convert_value(self) -> Any:
        return self._combine

    @classmethod
    def _combine(cls, value: Any, _expression: Any, _connection: Any) -> int | None:
        if not isinstance(value, str):
            return None if value is None else int(value)
        high, low = value.split(" ")
        return int(high) * cls._PART + int(low)
