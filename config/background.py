"""Periodic work beside the requests of a process, started once it will not fork any more."""

import logging
import os
import threading
from collections.abc import Callable

from django.conf import settings
from django.db import DatabaseError, InterfaceError, connection

from accounts.connections import released_connection

logger = logging.getLogger(__name__)

_lock = threading.Lock()
_started_in: int | None = None


class Periodic:
    """Calls `run` in a thread, at the start and then `every` so many seconds after it returned."""

    def __init__(self, name: str, every: float, run: Callable[[], None]) -> None:
        self.name = name
        self.every = every
        self._run = run

    def start(self) -> None:
        """Start the thread. A process that forks afterwards would not have it."""
        threading.Thread(target=self._loop, name=self.name, daemon=True).start()

    def run_once(self) -> None:
        """Run and return the database connection. No error ends the loop."""
        with released_connection():
            try:
                self._run()
            except (DatabaseError, InterfaceError) as error:
                # The next run gets a new connection, also on SQLite.
                connection.close()
                logger.warning("The database failed in %s: %s", self.name, type(error).__name__)
            except Exception:
                logger.exception("An error in %s; it runs again in %g s", self.name, self.every)

    def _loop(self) -> None:
        pause = threading.Event()
        while True:
            self.run_once()
            pause.wait(self.every)


def periodic_tasks() -> tuple[Periodic, ...]:
    """Return all periodic work of a process. Importing the apps needs Django to be set up."""
    from billing import leases
    from gateway.upstream import revocation

    return (
        # Three chances to renew a lease before it expires.
        Periodic("leases", settings.HOLD_LEASE_SECONDS / 3, leases.tick),
        Periodic("revocation", revocation.EVERY, revocation.tick),
    )


def start() -> bool:
    """Start the periodic work of this process; return False if it runs already."""
    global _started_in
    with _lock:
        if _started_in == os.getpid():
            return False
        _started_in = os.getpid()
    for task in periodic_tasks():
        task.start()
    return True


def start_with_first_request() -> None:
    """Start the periodic work if no hook of config/gunicorn.py did."""
    if _started_in != os.getpid() and start():
        logger.warning(
            "Served without -c config/gunicorn.py: settings are not checked, slow clients are not "
            "disconnected, and a restart interrupts running responses."
        )
