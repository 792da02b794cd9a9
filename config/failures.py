"""Report errors that an operator has to repair in one line, without a traceback."""

import contextlib
import sys
from collections.abc import Iterator

from config.environment import InvalidSettings

LONGEST = 300


@contextlib.contextmanager
def in_one_line() -> Iterator[None]:
    """End the program with one line for invalid settings and unreachable databases.

    `--traceback`, an option of every Django command, shows the traceback too.
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
    """Return the first line of a driver's error."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:LONGEST]
