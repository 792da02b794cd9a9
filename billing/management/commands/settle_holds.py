"""Settle the holds of processes that are gone."""

from typing import Any

from django.core.management.base import BaseCommand

from billing import journal, ledger, orphans
from billing.keeper import settle_from_journal


class Command(BaseCommand):
    help = (
        "Settle holds that nobody serves any more: their process is gone, or shows no life for "
        "HOLD_LEASE_SECONDS. Running gateways do the same by themselves; twice is harmless."
    )

    def handle(self, *_args: Any, **_options: Any) -> None:
        replayed = journal.replay(settle_from_journal)
        if replayed:
            self.stdout.write(f"{replayed} endings replayed from the journal.")
        settled = orphans.settle_all()
        left = ledger.open_holds().count()
        self.stdout.write(f"{settled} orphaned holds settled; {left} are open and being served.")
