"""Make a copied database one of its own."""

from typing import Any

from django.core.management.base import BaseCommand

from billing import configuration


class Command(BaseCommand):
    help = (
        "Give this database a new id. Run it once on a copy that lives on beside the original, "
        "for tests for instance, before a gateway is started on it: by its id a database knows "
        "which lines of the journal are its own."
    )

    def handle(self, *_args: Any, **_options: Any) -> None:
        self.stdout.write(f"This is database {configuration.renew_database_id()} now.")
