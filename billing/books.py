"""What the gateway's commands read of prices and usage; settings.BOOKS names the class."""

from collections.abc import Collection
from datetime import timedelta

from billing import clock, price_book
from billing.models import Hold, UsageDaily


class LedgerBooks:
    def priced(self) -> Collection[str]:
        return price_book.effective_prices(clock.now()).keys()

    def recently_used(self, models: Collection[str]) -> Collection[str]:
        since = (clock.read() - timedelta(days=1)).date()
        used = UsageDaily.objects.filter(day__gte=since, model__in=models)
        in_flight = Hold.objects.filter(state=Hold.State.OPEN, model__in=models)
        return set(used.values_list("model", flat=True)) | set(
            in_flight.values_list("model", flat=True)
        )
