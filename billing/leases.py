"""Renew the leases of the holds that this process serves, and settle abandoned holds.

Each process that opens holds runs one thread for this, so no periodic job has to be set up. The
abandoned holds of a killed worker are settled by the first process that finds them.
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
from billing.journal import LineStatus
from billing.reservations import Settlement
from billing.usage_rows import UnknownReservation

logger = logging.getLogger(__name__)

FORGET_KEYS_SECONDS = 600.0


class InFlight(Protocol):
    """A request that is being served."""

    @property
    def produced(self) -> int: ...


class LeaseRenewer:
    def __init__(self) -> None:
        self._in_flight: dict[UUID, InFlight] = {}
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        # An expired lease is ignored until then: its process may have been unable to renew it.
        self._trusts_leases_after = 0.0
        self._forgets_keys_after = 0.0

    def add(self, request_id: UUID, request: InFlight) -> None:
        """Renew a hold's lease until `remove`."""
        with self._lock:
            self._in_flight[request_id] = request
        if settings.KEEP_LEASES:
            self.start()

    def remove(self, request_id: UUID) -> None:
        with self._lock:
            self._in_flight.pop(request_id, None)

    def start(self) -> None:
        """Start the thread unless it runs. Only in a process that will not fork any more."""
        with self._lock:
            if self._thread is None:
                # The database may have just returned. Other processes renew their leases first.
                self._distrust_leases(settings.HOLD_LEASE_SECONDS / 2)
                thread = threading.Thread(target=self._run, name="leases", daemon=True)
                thread.start()
                self._thread = thread

    def _distrust_leases(self, seconds: float) -> None:
        self._trusts_leases_after = time.monotonic() + seconds

    def tick(self) -> None:
        """Renew our leases, replay the journal, then settle abandoned holds.

        The journal comes first, because it has the real usage of holds that look abandoned.
        """
        with self._lock:
            produced = {
                request_id: request.produced for request_id, request in self._in_flight.items()
            }
        ledger.renew(produced, timedelta(seconds=settings.HOLD_LEASE_SECONDS))
        journal.replay(settle_from_journal)
        expired = time.monotonic() > self._trusts_leases_after
        recovery.settle_abandoned(expired=expired, served=produced.keys())
        if time.monotonic() >= self._forgets_keys_after:
            idempotency.forget_expired()
            self._forgets_keys_after = time.monotonic() + FORGET_KEYS_SECONDS

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


def settle_from_journal(settlement: Settlement) -> LineStatus:
    """Settle a line of the journal. An invalid one is rejected, so that the rest is settled."""
    if settlement.reservation.database != configuration.database_id():
        return LineStatus.OTHER_DATABASE
    try:
        row = ledger.settle(settlement)
    except UnknownReservation as error:
        logger.error("Request %s cannot be settled: no %s", settlement.request_id, error)
        return LineStatus.REJECTED
    except (IntegrityError, DataError, OverflowError):
        logger.exception("A settlement contradicts the books; run `reconcile`: %s", settlement)
        return LineStatus.REJECTED
    return LineStatus.SETTLED if row else LineStatus.ALREADY_SETTLED


lease_renewer = LeaseRenewer()
