"""The names that accounts and keys may have. Pure."""

import difflib
import unicodedata
from collections.abc import Iterable

from django.core.exceptions import ValidationError

# Unicode categories: control and format characters (some reverse the text after them, some cannot
# be seen), and the ends of lines and paragraphs.
UNSEEN = {"Cc", "Cf", "Cs", "Co", "Zl", "Zp"}
# From this similarity on, one name is taken for a misspelling of the other.
ALIKE = 0.7
LONGEST = 100


def read_name(text: str) -> str:
    """Return the name of an account or a key without surrounding spaces; raise ValueError."""
    name = text.strip()
    if not name or len(name) > LONGEST:
        raise ValueError(f"A name has 1 to {LONGEST} characters.")
    try:
        refuse_unseen(name)
    except ValidationError as error:
        raise ValueError(error.messages[0]) from None
    return name


def refuse_unseen(name: str) -> None:
    """Raise ValidationError for a character that is invisible or hides other characters."""
    for character in name:
        if unicodedata.category(character) in UNSEEN:
            raise ValidationError(
                f"A name has no control characters and no invisible ones. Remove "
                f"U+{ord(character):04X}."
            )


def alike(name: str, names: Iterable[str]) -> str | None:
    """Return the name that a misspelled one resembles most; None if there is none."""
    folded = {each.casefold(): each for each in names}
    matches = difflib.get_close_matches(name.casefold(), folded, 1, ALIKE)
    return folded[matches[0]] if matches else None
