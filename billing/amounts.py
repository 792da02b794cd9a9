"""Read amounts of money as people write them. Pure."""

import re
import unicodedata
from decimal import Decimal

from billing.money import from_units, to_units

# As `1,000`: a decimal comma, or one between thousands.
AMBIGUOUS = re.compile(r"-?[1-9][0-9]{0,2},[0-9]{3}")
# Each with the marks between thousands, and the mark before decimals.
WRITTEN = [
    (re.compile(r"-?[0-9]+(\.[0-9]+)?"), "", "."),
    (re.compile(r"-?[0-9]+,[0-9]+"), "", ","),
    (re.compile(r"-?[0-9]{1,3}(,[0-9]{3})+(\.[0-9]+)?"), ",", "."),
    (re.compile(r"-?[0-9]{1,3}(\.[0-9]{3})+,[0-9]+"), ".", ","),
    (re.compile(r"-?[0-9]{1,3}(\.[0-9]{3}){2,}"), ".", ","),
]


def read_amount(text: str, currency: str) -> Decimal:
    """Return an amount: 50, 50,00, 1,000.50, 1.000,50, EUR 50 or 50 with the currency's sign.

    Raises ValueError, also for what can be read in two ways.
    """
    bare = text.strip().upper().removeprefix(currency).removesuffix(currency)
    bare = "".join(each for each in bare if unicodedata.category(each) != "Sc")
    bare = re.sub(r"[\s'\u2019]", "", bare)
    if AMBIGUOUS.fullmatch(bare):
        thousands, point = bare.replace(",", ""), bare.replace(",", ".")
        raise ValueError(f"'{text}' can be read in two ways: write {thousands} or {point}.")
    for pattern, between, decimal in WRITTEN:
        if pattern.fullmatch(bare):
            plain = (bare.replace(between, "") if between else bare).replace(decimal, ".")
            return from_units(to_units(plain))
    raise ValueError(f"'{text}' is not an amount such as 1000.50.")


def read_reference(text: str) -> str:
    """Return the reference of a payment without surrounding spaces; raise ValueError."""
    reference = text.strip()
    if len(reference) > 100 or not reference.isprintable():
        raise ValueError("A reference has at most 100 printable characters.")
    return reference
