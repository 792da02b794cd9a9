"""The meter that bills: hold before, settle after, through the ledger."""

import logging
import time
from collections.abc import Collection, Mapping
from datetime import timedelta
from uuid import UUID

from django.conf import settings
from django.db import DatabaseError, InterfaceError, connection
from django.db.models import Q

from accounts.connections import release_connection, released_connection
from billing import budgets, clock, journal, ledger, price_book, pricing, processes
from billing.leases import lease_renewer
from billing.models import TokenUsage
from billing.money import from_units, to_units
from billing.reservations import Reservation, Settlement
from gateway.metering import CountSource, Demand, NotPriced, Offer, Outcome, Receipt, Usage

logger = logging.getLogger(__name__)

# A connection that the database dropped while the answer streamed fails once; a fresh one works.
TRIES = 3
# Seconds after which no further try is made: the client waits for its last line meanwhile.
PATIENCE = 2.0


class LedgerMeter:
    """Counts one request in the ledger. Made by the middleware for each request."""

    def __init__(self, request_id: UUID) -> None:
        self.request_id = request_id
        self.produced = 0
        # None unless a hold is open.
        self._reservation: Reservation | None = None

    def offers(self, models: Collection[str]) -> Mapping[str, Offer]:
        found = price_book.effective_prices(clock.now(), models)
        release_connection()
        return {
            name: Offer(price.prompt_per_1k, price.completion_per_1k, settings.CURRENCY)
            for name, price in found.items()
        }

    def require_credit(self, account_id: int) -> None:
        with released_connection():
            budgets.require_credit(account_id)

    def open(self, demand: Demand) -> None:
        """Pin the price, hold the most it can come to; raise Refused."""
        price = price_book.effective_price(demand.model, clock.now())
        if price is None:
            raise NotPriced(demand.model)
        # Where the commit was done and only its answer lost, nobody renews the lease.
        self._reservation = ledger.hold(
            self.request_id,
            demand,
            price,
            worker=processes.identity(),
            lease=timedelta(seconds=settings.HOLD_LEASE_SECONDS),
        )
        lease_renewer.add(self.request_id, self)
        release_connection()

    def progress(self, completion_tokens: int) -> None:
        self.produced = completion_tokens

    def close(self, usage: Usage, outcome: Outcome) -> Receipt | None:
        """Settle; never raise. What cannot be written now goes to the journal."""
        reservation, self._reservation = self._reservation, None
        if reservation is None:
            return None
        billed = pricing.is_billed(outcome, usage, bill_interrupted=settings.BILL_INTERRUPTED)
        settlement = Settlement(reservation, usage, outcome, billed)
        try:
            return self._settle(settlement)
        except Exception as error:
            logger.error("Hold %s cannot be settled now: %s", self.request_id, type(error).__name__)
            return self._keep_for_later(settlement)
        finally:
            # Not before it is settled or in the journal: what nobody keeps may be swept.
            lease_renewer.remove(self.request_id)
            release_connection()

    def _keep_for_later(self, settlement: Settlement) -> Receipt | None:
        """Put a settlement into the journal; its price is pinned, so its cost is known."""
        try:
            journal.write(settlement)
            cost = from_units(settlement.cost)
        except OSError:
            logger.exception("The journal cannot be written; kept in memory: %s", settlement)
            return None
        except OverflowError:
            return None
        return Receipt(settlement.usage, cost, settings.CURRENCY)

    def discard(self, outcome: Outcome) -> None:
        """Delete the hold; never raise. One that cannot be deleted now is settled for nothing."""
        if self._reservation is None:
            return
        try:
            ledger.discard(self.request_id)
        except Exception as error:
            logger.error("Hold %s cannot be deleted: %s", self.request_id, type(error).__name__)
            self.close(Usage(), outcome)
            return
        self._reservation = None
        lease_renewer.remove(self.request_id)
        release_connection()

    def abandon(self) -> None:
        """Give back a hold that no answer used."""
        self.discard(Outcome.GATEWAY_FAILED)

    def _settle(self, settlement: Settlement) -> Receipt | None:
        give_up_at = time.monotonic() + PATIENCE
        for attempt in range(1, TRIES + 1):
            try:
                row = ledger.settle(settlement)
                # None: somebody was first, or a try before this one whose answer was lost.
                if row is None or row.adjusts:
                    return booked(self.request_id)
                return receipt_of([row])
            except (DatabaseError, InterfaceError):
                if attempt == TRIES or time.monotonic() > give_up_at:
                    raise
                drop_connection()
        raise AssertionError("unreachable")


def booked(request_id: UUID) -> Receipt | None:
    """Return what the books say of a request in the end, its adjustment included."""
    rows = TokenUsage.objects.filter(Q(request_id=request_id) | Q(adjusts=request_id))
    return receipt_of(list(rows.order_by("pk")))


def receipt_of(rows: list[TokenUsage]) -> Receipt | None:
    """Return what a client is told: what stands in the books."""
    if not rows:
        return None
    # One that is not billed cost nothing; its tokens are told where there is nothing else to tell.
    counted = [row for row in rows if row.billed] or rows
    usage = Usage(
        sum(row.prompt_tokens for row in counted),
        sum(row.completion_tokens for row in counted),
        CountSource(counted[-1].count_source),
        started=True,
    )
    cost = sum(to_units(row.cost) for row in counted)
    return Receipt(usage, from_units(cost), settings.CURRENCY)


def drop_connection() -> None:
    """Close the connection, so that the next statement gets a fresh one."""
    if not connection.in_atomic_block:
        connection.close()
