"""Django's SQLite, whose threads queue for the one writer instead of racing for its lock.

SQLite's own wait polls with growing pauses and knows no order. With two hundred threads most polls
find the lock taken, and an unlucky thread waits until its time-out. Here the threads of a process
queue for a lock of their own, so only one of each process polls.
"""

import threading
import time
from typing import Any

from django.db.backends.sqlite3 import base
from django.db.utils import OperationalError


class DatabaseWrapper(base.DatabaseWrapper):
    """Holds this process's write lock from BEGIN IMMEDIATE to COMMIT or ROLLBACK."""

    _writing = threading.Lock()
    # Whether this connection holds the lock.
    _is_writing = False

    def _start_transaction_under_autocommit(self) -> None:
        patience = float(self.settings_dict["OPTIONS"].get("timeout", 5.0))
        began = time.monotonic()
        if not self._is_writing and not self._writing.acquire(timeout=patience):
            raise OperationalError("database is locked")
        self._is_writing = True
        try:
            self._begin(patience, patience - (time.monotonic() - began))
        except BaseException:
            self._stop_writing()
            raise

    def _begin(self, patience: float, left: float) -> None:
        """Begin within the time that is left; both waits together take `patience` seconds."""
        waited = left < patience / 2
        if waited:
            self._set_patience(left)
        try:
            super()._start_transaction_under_autocommit()  # type: ignore[misc]
        finally:
            if waited:
                self._set_patience(patience)

    def _set_patience(self, seconds: float) -> None:
        with self.cursor() as cursor:
            cursor.execute(f"PRAGMA busy_timeout = {max(int(seconds * 1000), 0)}")

    def connect(self) -> None:
        # A transaction ends with its connection, however that was lost.
        self._stop_writing()
        super().connect()

    def __del__(self) -> None:
        # The thread ended within a transaction.
        self._stop_writing()

    def _commit(self) -> Any:
        done = super()._commit()  # type: ignore[misc]
        self._stop_writing()
        return done

    def _rollback(self) -> Any:
        try:
            return super()._rollback()  # type: ignore[misc]
        finally:
            self._stop_writing()

    def _close(self) -> Any:
        try:
            return super()._close()  # type: ignore[misc]
        finally:
            self._stop_writing()

    def _stop_writing(self) -> None:
        if self._is_writing:
            self._is_writing = False
            self._writing.release()
