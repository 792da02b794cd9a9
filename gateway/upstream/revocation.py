"""Break running answers off when their keys stop opening the door.

Authentication looks at a key once, before its answer, and an answer may take an hour. So one thread
per process asks the database, while answers run, which of their keys are still in force. An answer
of another key ends like one at a restart: with an error, and a bill for what was produced.
"""

import logging
import threading

from django.db import DatabaseError, InterfaceError, connection
from django.utils import timezone

from accounts import keys
from gateway.errors import KeyRevoked
from gateway.upstream.cancellation import disconnect_monitor

logger = logging.getLogger(__name__)

# How late a revocation may be noticed, in seconds; one short query each time, while answers run.
EVERY = 0.5


def start() -> None:
    """Start the thread. Only in a process that will not fork any more."""
    threading.Thread(target=_run, name="revocation", daemon=True).start()


def _run() -> None:
    pause = threading.Event()
    while True:
        pause.wait(EVERY)
        try:
            look()
        except (DatabaseError, InterfaceError) as error:
            # Answers under way go on while the database is away; so do those of revoked keys.
            logger.warning("Keys of running answers are not checked: %s", type(error).__name__)
        except Exception:
            logger.exception("The check of running answers' keys failed; it goes on")
        finally:
            connection.close()


def look() -> None:
    """Break off the running answers of keys that are no longer in force."""
    running = [
        (cancellation.key_id, cancellation)
        for cancellation in disconnect_monitor.running()
        if cancellation.key_id is not None
    ]
    if not running:
        return
    in_force = keys.usable({key_id for key_id, _cancellation in running}, timezone.now())
    for key_id, cancellation in running:
        if key_id not in in_force:
            cancellation.cancel(KeyRevoked)
