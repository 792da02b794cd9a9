"""Keep the leases of the holds this process serves, and settle those that nobody serves.

One thread per process. It runs wherever holds are opened, so there is no job to forget: the orphans
of a worker that was killed are settled by whichever process looks first.
"""

import logging
import threading
import time
from datetime import timedelta
from typing import Protocol
from uuid import UUID

from django.conf import settings
from django.db import DatabaseError, DataError, IntegrityError, InterfaceError, connection

from billing import configuration, idempotency, journal, ledger, recovery
from billing.journal import Fate
from billing.reservations import Settlement
from billing.usage_rows import UnknownReservation

logger = logging.getLogger(__name__)

FORGET_EVERY_SECONDS = 600.0


class InFlight(Protocol):
    """What is known of an answer on its way."""

    @property
    def produced(self) -> int: ...


class LeaseRenewer:
    def __init__(self) -> None:
        self._in_flight: dict[UUID, InFlight] = {}
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        # Until then a lease that has run out proves nothing.
        self._believes_leases_after = 0.0
        self._forgets_after = 0.0

    def add(self, request_id: UUID, answer: InFlight) -> None:
        """Renew a hold's lease from now on."""
        with self._lock:
            self._in_flight[request_id] = answer
        if settings.KEEP_LEASES:
            self.start()

    def remove(self, request_id: UUID) -> None:
        with self._lock:
            self._in_flight.pop(request_id, None)

    def start(self) -> None:
        """Start the thread unless it runs. Only in a process that will not fork any more."""
        with self._lock:
            if self._thread is None:
                # The database may just be back; let others renew their leases first.
                self._distrust_leases(settings.HOLD_LEASE_SECONDS / 2)
                thread = threading.Thread(target=self._run, name="leases", daemon=True)
                thread.start()
                self._thread = thread

    def _distrust_leases(self, seconds: float) -> None:
        self._believes_leases_after = time.monotonic() + seconds

    def tick(self) -> None:
        """Renew our leases, then settle what the journal holds, then orphans: in this order, since
        what stands in a journal is known better than what an orphan is thought to have used."""
        with self._lock:
            produced = {
                request_id: answer.produced for request_id, answer in self._in_flight.items()
            }
        ledger.renew(produced, timedelta(seconds=settings.HOLD_LEASE_SECONDS))
        journal.replay(settle_from_journal)
        expired = time.monotonic() > self._believes_leases_after
        recovery.settle_abandoned(expired=expired, served=produced.keys())
        if time.monotonic() >= self._forgets_after:
            idempotency.forget_expired()
            self._forgets_after = time.monotonic() + FORGET_EVERY_SECONDS

    def _run(self) -> None:
        pause = threading.Event()
        while True:
            try:
                self.tick()
            except (DatabaseError, InterfaceError) as error:
                # Others could not renew their leases either.
                self._distrust_leases(settings.HOLD_LEASE_SECONDS)
                logger.warning("Leases are not renewed: %s", type(error).__name__)
            except Exception:
                logger.exception("Lease renewal failed; it continues")
            finally:
                connection.close()
            # Three chances to renew before a lease runs out.
            pause.wait(settings.HOLD_LEASE_SECONDS / 3)


def settle_from_journal(settlement: Settlement) -> Fate:
    """Settle what a journal says; what the books refuse must not keep the rest from it."""
    if settlement.reservation.database != configuration.database_id():
        return Fate.FOREIGN
    try:
        return Fate.SETTLED if ledger.settle(settlement) else Fate.ENDED
    except UnknownReservation as error:
        logger.error("Request %s is unknown here: no %s", settlement.request_id, error)
    except (IntegrityError, DataError, OverflowError):
        logger.exception("An ending contradicts the books; see `reconcile`: %s", settlement)
    return Fate.REFUSED


lease_renewer = LeaseRenewer()
