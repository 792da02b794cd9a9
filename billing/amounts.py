"""Read amounts of money as people write them. Pure."""

import re
import unicodedata
from decimal import Decimal

from billing.money import from_units, to_units

# Such as 1,000: its comma is a decimal mark or a thousands separator.
AMBIGUOUS = re.compile(r"-?[1-9][0-9]{0,2},[0-9]{3}")
# Each pattern with its thousands separator and its decimal mark.
FORMATS = [
    (re.compile(r"-?[0-9]+(\.[0-9]+)?"), "", "."),
    (re.compile(r"-?[0-9]+,[0-9]+"), "", ","),
    (re.compile(r"-?[0-9]{1,3}(,[0-9]{3})+(\.[0-9]+)?"), ",", "."),
    (re.compile(r"-?[0-9]{1,3}(\.[0-9]{3})+,[0-9]+"), ".", ","),
    (re.compile(r"-?[0-9]{1,3}(\.[0-9]{3}){2,}"), ".", ","),
]


def read_amount(text: str, currency: str) -> Decimal:
    """Read an amount such as 50, 50,00, 1,000.50, 1.000,50 or EUR 50, also with a currency sign.

    Raises ValueError, also if the text can be read in two ways.
    """
    bare = text.strip().upper().removeprefix(currency).removesuffix(currency)
    bare = "".join(character for character in bare if unicodedata.category(character) != "Sc")
    bare = re.sub(r"[\s'\u2019]", "", bare)
    if AMBIGUOUS.fullmatch(bare):
        thousands, point = bare.replace(",", ""), bare.replace(",", ".")
        raise ValueError(f"'{text}' can be read in two ways: write {thousands} or {point}.")
    for pattern, separator, decimal in FORMATS:
        if pattern.fullmatch(bare):
            plain = (bare.replace(separator, "") if separator else bare).replace(decimal, ".")
            return from_units(to_units(plain))
    raise ValueError(f"'{text}' is not an amount such as 1000.50.")


def read_reference(text: str) -> str:
    """Return the reference of a payment without surrounding spaces; raise ValueError."""
    reference = text.strip()
    if len(reference) > 100 or not reference.isprintable():
        raise ValueError("A reference has at most 100 printable characters.")
    return reference
