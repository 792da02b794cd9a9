"""Settle the holds of processes that are gone."""

import sys
from typing import Any

from django.core.management.base import BaseCommand

from billing import journal, ledger, recovery
from billing.journal import Fate
from billing.leases import settle_from_journal


class Command(BaseCommand):
    help = (
        "Settle holds that nobody serves any more: their process is gone, or shows no life for "
        "HOLD_LEASE_SECONDS. Running gateways do the same by themselves; twice is harmless. "
        "Exits with 1 if a line of the journal cannot be settled."
    )

    def handle(self, *_args: Any, **_options: Any) -> None:
        replayed = journal.replay(settle_from_journal)
        self.tell(replayed)
        settled = recovery.settle_abandoned()
        left = ledger.open_holds().count()
        self.stdout.write(f"{settled} orphaned holds settled; {left} are open and being served.")
        if replayed.aside:
            sys.exit(1)

    def tell(self, replayed: journal.Replayed) -> None:
        """Say what became of the lines of the journal."""
        fates = replayed.fates
        if fates[Fate.SETTLED] or fates[Fate.ENDED]:
            before = f"; {fates[Fate.ENDED]} had been settled before" if fates[Fate.ENDED] else ""
            self.stdout.write(f"{fates[Fate.SETTLED]} endings settled from the journal{before}.")
        if fates[Fate.FOREIGN]:
            self.stdout.write(
                f"{fates[Fate.FOREIGN]} lines of the journal are of another database "
                f"({', '.join(sorted(replayed.databases))}) and were left alone. "
                "Run this command with the DATABASE_URL of that database."
            )
        for path in replayed.aside:
            self.stderr.write(
                f"Lines of the journal cannot be settled here; they were moved to {path}. "
                "The log says why. Rename the file to end in .ndjson to try again."
            )
