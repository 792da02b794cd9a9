"""Renew the leases of the holds that this process serves, and settle abandoned holds.

config/background.py runs `tick` in each process, so no periodic job has to be set up. The abandoned
holds of a killed worker are settled by the first process that finds them.
"""

import logging
import threading
import time
from datetime import timedelta
from typing import Protocol
from uuid import UUID

from django.conf import settings
from django.db import DatabaseError, DataError, IntegrityError, InterfaceError

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
    """`trusts_leases`: whether the first tick settles holds whose leases have expired."""

    def __init__(self, *, trusts_leases: bool = True) -> None:
        self._in_flight: dict[UUID, InFlight] = {}
        self._lock = threading.Lock()
        self._is_new = not trusts_leases
        # An expired lease is ignored until then: its process may have been unable to renew it.
        self._trusts_leases_after = 0.0
        self._forgets_keys_after = 0.0

    def add(self, request_id: UUID, request: InFlight) -> None:
        """Renew a hold's lease until `remove`."""
        with self._lock:
            self._in_flight[request_id] = request

    def remove(self, request_id: UUID) -> None:
        with self._lock:
            self._in_flight.pop(request_id, None)

    def tick(self) -> None:
        """Renew our leases, replay the journal, then settle abandoned holds.

        The journal comes first, because it has the real usage of holds that look abandoned.
        """
        if self._is_new:
            # The database may have just returned. Other processes renew their leases first.
            self._distrust_leases(settings.HOLD_LEASE_SECONDS / 2)
            self._is_new = False
        try:
            self._renew_and_settle()
        except (DatabaseError, InterfaceError):
            # Other processes could not renew their leases either.
            self._distrust_leases(settings.HOLD_LEASE_SECONDS)
            raise

    def _renew_and_settle(self) -> None:
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

    def _distrust_leases(self, seconds: float) -> None:
        self._trusts_leases_after = time.monotonic() + seconds


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


lease_renewer = LeaseRenewer(trusts_leases=False)


def tick() -> None:
    """Renew and settle for this process."""
    lease_renewer.tick()
