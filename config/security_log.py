"""Django's log of suspicious requests, in one line each.

It writes a traceback for every one: a client without a key could fill the log with them, and its
own words stand in the message as they came.
"""

import logging

LONGEST = 300


def in_one_line(record: logging.LogRecord) -> bool:
    """Take the traceback and the control characters out of what a client caused."""
    if record.name.startswith("django.security"):
        record.exc_info = record.exc_text = None
        text = record.getMessage().encode("unicode_escape").decode("ascii")
        record.msg, record.args = text[:LONGEST], ()
        record.levelno, record.levelname = logging.WARNING, "WARNING"
    return True
