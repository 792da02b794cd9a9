"""Settle the holds of processes that are gone: what was known to be produced, never more."""

import logging
from collections.abc import Iterator
from datetime import datetime, timedelta

from django.db import IntegrityError

from billing import ledger, pricing, workers
from billing.models import Hold
from gateway.metering import CountSource, Outcome, Usage

GRACE = timedelta(hours=1)

logger = logging.getLogger(__name__)


def settle_all(now: datetime) -> int:
    """Settle every orphan; return how many. Any number of processes may do so at once."""
    return sum(_settle_or_report(hold, now) for hold in find(now))


def find(now: datetime) -> Iterator[Hold]:
    """Yield open holds whose worker is known to be dead, or whose lease has run out.

    Another worker of this machine that is known to run keeps its holds for GRACE longer: it may
    have been unable to renew them while the database was away. Our own were renewed just before.
    """
    mine = workers.identity()
    dead: dict[str, bool] = {}
    alive: dict[str, bool] = {}
    for hold in ledger.open_holds():
        if hold.worker not in dead:
            dead[hold.worker] = workers.is_known_dead(hold.worker)
            alive[hold.worker] = hold.worker != mine and workers.is_known_alive(hold.worker)
        lapsed = hold.lease_until < (now - GRACE if alive[hold.worker] else now)
        if dead[hold.worker] or lapsed:
            yield hold


def _settle_or_report(hold: Hold, now: datetime) -> bool:
    """Settle an orphan; one that cannot be settled must not keep the others from it."""
    try:
        return _settle(hold, now)
    except IntegrityError:
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
    row = ledger.settle(hold.request_id, usage, outcome=Outcome.EXPIRED, billed=billed, now=now)
    if row is None:
        return False  # Somebody else was first; the gate in the ledger lets one through.
    logger.warning("Hold %s of %s was orphaned; settled.", hold.request_id, hold.worker)
    return True
