#!/usr/bin/env python
"""Run a management command of the gateway."""

import os
import sys

from config.failures import in_one_line


def main() -> None:
    # Files of a command (the SQLite database, the journal) are readable only by its user.
    os.umask(0o077)
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "config.settings")
    from django.core.management import execute_from_command_line

    with in_one_line():
        execute_from_command_line(sys.argv)


if __name__ == "__main__":
    main()
