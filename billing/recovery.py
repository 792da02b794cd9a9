"""Settle abandoned holds: those of processes that have exited, and those whose lease has expired.

They are billed for the tokens that the process reported in time, never for more.
"""

import logging
from collections.abc import Collection, Iterator
from datetime import timedelta
from functools import cache
from typing import Any
from uuid import UUID

from django.conf import settings
from django.db import DataError, IntegrityError

from billing import clock, journal, ledger, pricing, processes
from billing.models import Hold
from billing.reservations import Settlement, reservation_of
from gateway.metering import CountSource, Outcome, Usage

# How long after its lease a hold is left open while its worker may run or has a journal.
GRACE = timedelta(hours=1)
ZERO = timedelta()

logger = logging.getLogger(__name__)


def settle_abandoned(*, expired: bool = True, served: Collection[UUID] = ()) -> int:
    """Settle every abandoned hold; return how many. Several processes may do so concurrently."""
    return sum(_settle_or_report(hold) for hold in abandoned_holds(expired=expired, served=served))


def abandoned_holds(*, expired: bool = True, served: Collection[UUID] = ()) -> Iterator[Hold]:
    """Yield open holds whose worker has exited, or (`expired`) whose lease has expired.

    Holds in `served` are skipped: this process may have been suspended since it renewed them.

    Two kinds of holds expire GRACE later. The worker may still run on this machine, and was perhaps
    unable to renew its leases while the database was away. Or its journal is not replayed yet, and
    has the real usage. GRACE is limited, because a running process does not know of a hold whose
    commit succeeded but was never confirmed.
    """
    exited, may_run, has_journal = cache(processes.has_exited), cache(_may_run), cache(_has_journal)
    for hold in ledger.open_holds():
        if hold.request_id in served:
            continue
        # In this order, because a worker that has exited writes no more to its journal.
        is_lost = exited(hold.worker) and not has_journal(hold.worker)
        extended = may_run(hold.worker) or has_journal(hold.worker)
        if is_lost or (expired and _since_lease(hold) >= (GRACE if extended else ZERO)):
            yield hold


def _since_lease(hold: Any) -> timedelta:
    """Return how long ago a lease expired; negative if it has not.

    A lease of this machine is measured by the boot clock, which cannot be set. Other leases are
    measured by the database's clock, the only one that both machines share.
    """
    if processes.is_of_this_boot(hold.worker):
        return timedelta(milliseconds=clock.since_boot() - hold.lease_boot_ms)
    since: timedelta = hold.now - hold.lease_until
    return since


def _may_run(worker: str) -> bool:
    """Tell whether a worker is another process of this machine that may still run."""
    return worker != processes.identity() and processes.may_be_running(worker)


def _has_journal(worker: str) -> bool:
    return processes.file_name(worker) in journal.workers_with_files()


def _settle_or_report(hold: Hold) -> bool:
    """Settle an abandoned hold; log an error, so that the other holds are settled."""
    try:
        return _settle(hold)
    except (IntegrityError, DataError, OverflowError):
        logger.exception("Hold %s contradicts the books; see `reconcile`.", hold.request_id)
        return False


def _settle(hold: Hold) -> bool:
    started = hold.progress > 0
    usage = Usage(
        prompt_tokens=hold.prompt_estimate if started else 0,
        completion_tokens=hold.progress,
        source=CountSource.ESTIMATED,
        started=started,
        delivered=started,  # Progress counts chunks that were sent to the client.
    )
    billed = pricing.is_billed(Outcome.EXPIRED, usage, bill_interrupted=settings.BILL_INTERRUPTED)
    reservation = reservation_of(hold, hold.price.rates)
    settlement = Settlement(reservation, usage, Outcome.EXPIRED, billed)
    row = ledger.settle(settlement, lease_boot_ms=hold.lease_boot_ms)
    if row is None:
        return False  # Another process has settled the hold, or its lease was renewed.
    logger.warning("Hold %s of %s was abandoned; settled.", hold.request_id, hold.worker)
    return True
