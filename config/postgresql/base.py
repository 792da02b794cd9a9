"""Django's PostgreSQL, for requests that must neither wait for ever nor be turned away too soon.

A server that hangs (its machine is paused, its disk is gone) keeps its connections open and says
nothing. The kernel still acknowledges what is sent, so no time-out of TCP notices, and each request
would keep its thread. A server that is merely busy looks the same to who stands in line for it.
"""

import time
from typing import Any

import psycopg
from django.db.backends.postgresql import base
from psycopg.errors import OperationalError
from psycopg_pool import PoolTimeout
from psycopg_pool.base import AttemptWithBackoff

# Seconds a request stands in line for a pool that still lends connections: as many as it would
# wait for SQLite's one writer.
LINE_SECONDS = 10.0


class DatabaseWrapper(base.DatabaseWrapper):
    """Waits for a pooled connection while the pool still hands some out.

    The pool's own timeout is meant for a database that is down. Many requests on a slow machine
    exceed it too, although each would get a connection a moment later.
    """

    # When the pool of this process lent a connection last.
    _lent_at = float("-inf")

    def get_new_connection(self, conn_params: dict[str, Any]) -> Any:
        began = time.monotonic()
        while True:
            tried = time.monotonic()
            try:
                connection = super().get_new_connection(conn_params)
            except PoolTimeout as error:
                nobody_was_served = DatabaseWrapper._lent_at < tried
                if nobody_was_served or time.monotonic() - began >= LINE_SECONDS:
                    reason = PatientConnection.refusal
                    raise PoolTimeout(f"{error}: {reason}" if reason else str(error)) from error
            else:
                DatabaseWrapper._lent_at = time.monotonic()
                return connection

    def _configure_connection(self, connection: Any) -> bool:
        """Pin the isolation level of statements outside of a transaction too.

        OPTIONS sets that of Django's transactions only. A start-up parameter would do both, but
        PgBouncer refuses those.
        """
        super()._configure_connection(connection)  # type: ignore[misc]  # missing in its types
        with connection.cursor() as cursor:
            cursor.execute(
                "SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL READ COMMITTED"
            )
        return True


class PatientConnection(psycopg.Connection[Any]):
    """Waits `seconds` for what a statement returns; for ever while that is None."""

    seconds: float | None = None
    # Why the server refused the latest connection; empty once it accepts one. The pool connects
    # in a thread of its own, and tells who waits for it nothing but that time is up.
    refusal = ""

    @classmethod
    def connect(cls, *args: Any, **kwargs: Any) -> Any:
        try:
            connection = super().connect(*args, **kwargs)
        except OperationalError as error:
            PatientConnection.refusal = str(error).strip().partition("\n")[0]
            raise
        PatientConnection.refusal = ""
        return connection

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
