"""Prove every sum of billing from its rows."""

import sys
from typing import Any

from django.core.management.base import BaseCommand

from billing import reconciliation


class Command(BaseCommand):
    help = (
        "Check that every sum of billing equals its rows. It reads one snapshot, so the gateway "
        "may run. On a difference it names the rows and exits with 1."
    )

    def handle(self, *_args: Any, **_options: Any) -> None:
        results, scope = reconciliation.prove()
        for check, differences in results:
            self.stdout.write(f"{'DIFF' if differences else 'ok  '} {check.name}")
            for difference in differences:
                self.stdout.write(f"     {difference}")
        count = sum(len(differences) for _check, differences in results)
        if count:
            self.stderr.write(f"{count} differences; {scope}")
            sys.exit(1)
        self.stdout.write(str(scope))
