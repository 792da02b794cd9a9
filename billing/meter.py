"""The meter that bills: hold before, settle after, through the ledger."""

import logging
import time
from collections.abc import Collection, Mapping
from datetime import timedelta
from uuid import UUID

from django.conf import settings
from django.db import DatabaseError, InterfaceError, connection

from accounts.connections import give_back
from billing import budgets, clock, journal, ledger, prices, pricing, workers
from billing.keeper import keeper
from billing.models import TokenUsage
from billing.money import from_pico
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
        self._is_open = False
        self._rates = pricing.Rates(0, 0)

    def offers(self, models: Collection[str]) -> Mapping[str, Offer]:
        found = prices.all_in_force(clock.now(), models)
        give_back()
        return {
            name: Offer(price.prompt_per_1k, price.completion_per_1k, settings.CURRENCY)
            for name, price in found.items()
        }

    def require_credit(self, account_id: int) -> None:
        try:
            budgets.require_credit(account_id)
        finally:
            give_back()

    def open(self, demand: Demand) -> None:
        """Pin the price, hold the most it can come to; raise Refused."""
        price = prices.in_force(demand.model, clock.now())
        if price is None:
            raise NotPriced(demand.model)
        reservation = ledger.Reservation(
            request_id=self.request_id,
            demand=demand,
            price=price,
            worker=workers.identity(),
            lease=timedelta(seconds=settings.HOLD_LEASE_SECONDS),
        )
        # Where the commit was done and only its answer lost, nobody renews the lease.
        ledger.hold(reservation)
        self._is_open, self._rates = True, price.rates
        keeper.keep(self.request_id, self)
        give_back()

    def progress(self, completion_tokens: int) -> None:
        self.produced = completion_tokens

    def close(self, usage: Usage, outcome: Outcome) -> Receipt | None:
        """Settle; never raise. What cannot be written now goes to the journal."""
        if not self._is_open:
            return None
        self._is_open = False
        billed = pricing.is_billed(outcome, usage, bill_interrupted=settings.BILL_INTERRUPTED)
        try:
            row = self._settle(usage, outcome, billed)
        except Exception as error:
            logger.error("Hold %s cannot be settled now: %s", self.request_id, type(error).__name__)
            return self._keep_for_later(journal.Ending(self.request_id, usage, outcome, billed))
        finally:
            # Not before it is settled or in the journal: what nobody keeps may be swept.
            keeper.drop(self.request_id)
            give_back()
        return None if row is None else receipt_of(row)

    def _keep_for_later(self, ending: journal.Ending) -> Receipt | None:
        """Put an ending into the journal; its price is pinned, so its cost is known."""
        try:
            journal.write(ending)
        except OSError:
            logger.exception("The journal cannot be written; kept in memory: %s", ending)
            return None
        used = (ending.usage.prompt_tokens, ending.usage.completion_tokens)
        cost = pricing.cost(self._rates, *used) if ending.billed else 0
        return Receipt(ending.usage, from_pico(cost), settings.CURRENCY)

    def discard(self, outcome: Outcome) -> None:
        """Delete the hold; never raise. One that cannot be deleted now is settled for nothing."""
        if not self._is_open:
            return
        try:
            ledger.discard(self.request_id)
        except Exception as error:
            logger.error("Hold %s cannot be deleted: %s", self.request_id, type(error).__name__)
            self.close(Usage(), outcome)
            return
        self._is_open = False
        keeper.drop(self.request_id)
        give_back()

    def abandon(self) -> None:
        """Give back a hold that no answer used."""
        self.discard(Outcome.GATEWAY_FAILED)

    def _settle(self, usage: Usage, outcome: Outcome, billed: bool) -> TokenUsage | None:
        give_up_at = time.monotonic() + PATIENCE
        for attempt in range(1, TRIES + 1):
            try:
                row = ledger.settle(self.request_id, usage, outcome=outcome, billed=billed)
                # None: somebody was first, or a try before this one whose answer was lost.
                return row or TokenUsage.objects.filter(request_id=self.request_id).first()
            except (DatabaseError, InterfaceError):
                if attempt == TRIES or time.monotonic() > give_up_at:
                    raise
                drop_connection()
        raise AssertionError("unreachable")


def receipt_of(row: TokenUsage) -> Receipt:
    """Return what a client is told: what stands in the books."""
    source = CountSource(row.count_source)
    usage = Usage(row.prompt_tokens, row.completion_tokens, source, started=True)
    return Receipt(usage, row.cost, settings.CURRENCY)


def drop_connection() -> None:
    """Close the connection, so that the next statement gets a fresh one."""
    if not connection.in_atomic_block:
        connection.close()
