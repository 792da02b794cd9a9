"""Settle the holds of processes that are gone: what was known to be produced, never more."""

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

GRACE = timedelta(hours=1)
NONE = timedelta()

logger = logging.getLogger(__name__)


def settle_abandoned(*, expired: bool = True, served: Collection[UUID] = ()) -> int:
    """Settle every orphan; return how many. Any number of processes may do so at once."""
    return sum(_settle_or_report(hold) for hold in abandoned_holds(expired=expired, served=served))


def abandoned_holds(*, expired: bool = True, served: Collection[UUID] = ()) -> Iterator[Hold]:
    """Yield open holds whose worker is known to be dead, or (`expired`) whose lease has run out.

    Never those `served` by this process: it may have been stopped since it renewed them.

    GRACE longer wait those of another process of this machine that may run: it may have been unable
    to renew them while the database was away; and those of a worker whose journal waits to be
    replayed, for there stands what they used. No longer than that: a process may run for ever and
    not know of a hold, where the answer to its commit was lost.
    """
    dead, alive, journalled = cache(processes.has_exited), cache(_runs), cache(_has_journal)
    for hold in ledger.open_holds():
        if hold.request_id in served:
            continue
        # In this order: a worker that is dead by now writes no journal any more.
        is_dead = dead(hold.worker) and not journalled(hold.worker)
        waits = alive(hold.worker) or journalled(hold.worker)
        if is_dead or (expired and _since_lease(hold) >= (GRACE if waits else NONE)):
            yield hold


def _since_lease(hold: Any) -> timedelta:
    """Return how long ago a lease ran out; negative while it runs. Where it was given on this
    machine, by the clock that nobody can set; else by the database's, the only one both share."""
    if processes.is_of_this_boot(hold.worker):
        return timedelta(milliseconds=clock.since_boot() - hold.lease_boot_ms)
    since: timedelta = hold.now - hold.lease_until
    return since


def _runs(worker: str) -> bool:
    """Tell whether a worker is another of this machine that may run; ours were renewed just now."""
    return worker != processes.identity() and processes.may_be_running(worker)


def _has_journal(worker: str) -> bool:
    return processes.file_name(worker) in journal.owners()


def _settle_or_report(hold: Hold) -> bool:
    """Settle an orphan; one that cannot be settled must not keep the others from it."""
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
        delivered=started,  # Progress is noted of chunks that are relayed, and of no others.
    )
    billed = pricing.is_billed(Outcome.EXPIRED, usage, bill_interrupted=settings.BILL_INTERRUPTED)
    reservation = reservation_of(hold, hold.price.rates)
    settlement = Settlement(reservation, usage, Outcome.EXPIRED, billed)
    row = ledger.settle(settlement, lease_boot_ms=hold.lease_boot_ms)
    if row is None:
        return False  # Somebody else was first, or it is being served again.
    logger.warning("Hold %s of %s was orphaned; settled.", hold.request_id, hold.worker)
    return True
