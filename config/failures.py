"""Say in one line what an operator has to mend, instead of a traceback."""

import contextlib
import sys
from collections.abc import Iterator

from config.environment import InvalidSettings

LONGEST = 300


@contextlib.contextmanager
def in_one_line() -> Iterator[None]:
    """End this program with one clear line for settings and databases that cannot work.

    `--traceback`, which every command of Django has, shows the rest.
    """
    from django.db import InterfaceError, OperationalError

    try:
        yield
    except InvalidSettings as error:
        sys.exit(str(error))
    except (OperationalError, InterfaceError) as error:
        if "--traceback" in sys.argv:
            raise
        sys.exit(f"The database cannot be used: {first_line(error)}")


def first_line(error: Exception) -> str:
    """Return what an error of a driver says in its first line, and no more of it."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:LONGEST]
