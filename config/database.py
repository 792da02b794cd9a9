"""A connection to PostgreSQL that does not wait for ever.

A server that hangs (its machine is paused, its disk is gone) keeps its connections open and says
nothing. The kernel still acknowledges what is sent, so no time-out of TCP notices, and each request
would keep its thread.
"""

from typing import Any

import psycopg
from psycopg.errors import OperationalError
from psycopg_pool.base import AttemptWithBackoff


class PatientConnection(psycopg.Connection[Any]):
    """Waits `seconds` for what a statement returns; for ever while that is None."""

    seconds: float | None = None

    def wait(self, gen: Any, interval: float = 0.1, timeout: float | None = None) -> Any:
        try:
            return super().wait(gen, interval, timeout or self.seconds)
        except psycopg.errors._WaitTimeout:
            # What the statement did is unknown now; nobody may use this connection again.
            self.pgconn.finish()
            raise OperationalError("the database does not answer") from None


def try_anew_at_once() -> None:
    """Let the pool look for a living connection without long pauses.

    After a restart of the server all that it keeps are dead. It pauses one second after the first
    of them and two after the next: longer than a request waits, with the server long back.
    """
    AttemptWithBackoff.INITIAL_DELAY = 0.02
    AttemptWithBackoff.DELAY_BACKOFF = 1.0
