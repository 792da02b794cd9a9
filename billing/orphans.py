"""Settle the holds of processes that are gone: what was known to be produced, never more."""

import logging
from collections.abc import Iterator
from datetime import datetime, timedelta
from functools import cache

from django.db import DataError, IntegrityError

from billing import journal, ledger, pricing, workers
from billing.models import Hold
from gateway.metering import CountSource, Outcome, Usage

GRACE = timedelta(hours=1)

logger = logging.getLogger(__name__)


def settle_all(now: datetime, *, lapsed: bool = True) -> int:
    """Settle every orphan; return how many. Any number of processes may do so at once."""
    return sum(_settle_or_report(hold, now) for hold in find(now, lapsed=lapsed))


def find(now: datetime, *, lapsed: bool = True) -> Iterator[Hold]:
    """Yield open holds whose worker is known to be dead, or (`lapsed`) whose lease has run out.

    GRACE longer wait those of another worker of this machine that may run: it may have been
    unable to renew them while the database was away; and those of a worker whose journal waits to
    be replayed, for there stands what they used.
    """
    dead, alive, journalled = cache(workers.is_known_dead), cache(_runs), cache(_has_journal)
    for hold in ledger.open_holds():
        # In this order: a worker that is dead by now writes no journal any more.
        is_dead = dead(hold.worker) and not journalled(hold.worker)
        waits = alive(hold.worker) or journalled(hold.worker)
        ran_out = hold.lease_until < (now - GRACE if waits else now)
        if is_dead or (lapsed and ran_out):
            yield hold


def _runs(worker: str) -> bool:
    """Tell whether a worker is another of this machine that may run; ours were renewed just now."""
    return worker != workers.identity() and workers.may_still_run(worker)


def _has_journal(worker: str) -> bool:
    return worker.rpartition("/")[2] in journal.owners()


def _settle_or_report(hold: Hold, now: datetime) -> bool:
    """Settle an orphan; one that cannot be settled must not keep the others from it."""
    try:
        return _settle(hold, now)
    except (IntegrityError, DataError):
        logger.exception("Hold %s contradicts the books; see `reconcile`.", hold.request_id)
        return False


def _settle(hold: Hold, now: datetime) -> bool:
    started = hold.progress > 0
    usage = Usage(
        prompt_tokens=hold.prompt_estimate if started else 0,
        completion_tokens=hold.progress,
        source=CountSource.ESTIMATED,
        started=started,
    )
    billed = pricing.is_billed(Outcome.EXPIRED, usage, bill_broken=False)
    row = ledger.settle(
        hold.request_id,
        usage,
        outcome=Outcome.EXPIRED,
        billed=billed,
        now=now,
        lease_until=hold.lease_until,
    )
    if row is None:
        return False  # Somebody else was first, or it is being served again.
    logger.warning("Hold %s of %s was orphaned; settled.", hold.request_id, hold.worker)
    return True
