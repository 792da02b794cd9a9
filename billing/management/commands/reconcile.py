"""Prove the books from their rows."""

import sys
from typing import Any

from django.core.management.base import BaseCommand

from billing import reconciliation


class Command(BaseCommand):
    help = "Check every equality of the books. Exits with 1, naming the rows, on any difference."

    def handle(self, *_args: Any, **_options: Any) -> None:
        results, scope = reconciliation.prove()
        for check, found in results:
            self.stdout.write(f"{'DIFF' if found else 'ok  '} {check.name}")
            for difference in found:
                self.stdout.write(f"     {difference}")
        count = sum(len(found) for _check, found in results)
        if count:
            self.stderr.write(f"{count} differences; {scope}")
            sys.exit(1)
        self.stdout.write(str(scope))
