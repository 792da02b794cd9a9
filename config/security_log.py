"""Log each suspicious request in one line.

Django logs a traceback for each, so a client without a key could fill the log. The message contains
the client's text unescaped.
"""

import logging

LONGEST = 300


def in_one_line(record: logging.LogRecord) -> bool:
    """Remove the traceback and escape the control characters of a client's text."""
    if record.name.startswith("django.security"):
        record.exc_info = record.exc_text = None
        text = record.getMessage().encode("unicode_escape").decode("ascii")
        record.msg, record.args = text[:LONGEST], ()
        record.levelno, record.levelname = logging.WARNING, "WARNING"
    return True
