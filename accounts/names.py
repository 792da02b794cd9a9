"""Which names accounts and keys may have. Pure."""

import difflib
import unicodedata
from collections.abc import Iterable

from django.core.exceptions import ValidationError

# Control and format characters (some turn the text after them around, some cannot be seen), and
# the ends of lines and paragraphs.
UNSEEN = {"Cc", "Cf", "Cs", "Co", "Zl", "Zp"}
# How alike two names are when one is taken for a slip of the other.
ALIKE = 0.7


def refuse_unseen(name: str) -> None:
    """Raise ValidationError for a character that cannot be seen, or that hides others."""
    for character in name:
        if unicodedata.category(character) in UNSEEN:
            raise ValidationError(
                f"A name has no control characters and no invisible ones; U+{ord(character):04X} "
                "is one."
            )


def alike(name: str, names: Iterable[str]) -> str | None:
    """Return the one of some names that a misspelt one most resembles; None if none does."""
    folded = {each.casefold(): each for each in names}
    found = difflib.get_close_matches(name.casefold(), folded, 1, ALIKE)
    return folded[found[0]] if found else None
