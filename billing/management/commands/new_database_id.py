"""Give a copied database an id of its own."""

from typing import Any

from django.core.management.base import BaseCommand

from billing import configuration


class Command(BaseCommand):
    help = (
        "Give this database a new id. Run it once on a copy of a database, such as one for tests, "
        "before you start a gateway on it. Lines of the journal name the id of their database, so "
        "the copy does not settle lines of the original."
    )

    def handle(self, *_args: Any, **_options: Any) -> None:
        self.stdout.write(f"The new database id is {configuration.renew_database_id()}.")
