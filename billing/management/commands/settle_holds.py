"""Settle what waits in the journal, and abandoned holds."""

import sys
from typing import Any

from django.core.management.base import BaseCommand

from billing import journal, ledger, recovery
from billing.journal import LineStatus, Replayed
from billing.leases import settle_from_journal


class Command(BaseCommand):
    help = (
        "Settle the lines of the journal, then abandoned holds: their process has exited, or has "
        "not renewed its lease for HOLD_LEASE_SECONDS. Running gateways do this by themselves, "
        "and it is safe to run it again. Exits with 1 if a line of the journal cannot be settled."
    )

    def handle(self, *_args: Any, **_options: Any) -> None:
        replayed = journal.replay(settle_from_journal)
        self.report(replayed)
        settled = recovery.settle_abandoned()
        still_open = ledger.open_holds().count()
        self.stdout.write(
            f"{settled} abandoned holds settled; {still_open} are open and being served."
        )
        if replayed.rejected_files:
            sys.exit(1)

    def report(self, replayed: Replayed) -> None:
        """Write how many lines of the journal have each status, and what to do about them."""
        settled = replayed.statuses[LineStatus.SETTLED]
        before = replayed.statuses[LineStatus.ALREADY_SETTLED]
        if settled or before:
            note = f"; {before} had been settled before" if before else ""
            self.stdout.write(f"{settled} requests settled from the journal{note}.")
        if others := replayed.statuses[LineStatus.OTHER_DATABASE]:
            self.stdout.write(
                f"{others} lines of the journal are of another database "
                f"({', '.join(sorted(replayed.databases))}) and were left alone. "
                "Run this command with the DATABASE_URL of that database."
            )
        for path in replayed.rejected_files:
            self.stderr.write(
                f"Lines of the journal cannot be settled here; they were moved to {path}. "
                "The log has the reason. To try again, rename the file so that it ends in .ndjson."
            )
