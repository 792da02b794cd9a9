"""Put money into an account's wallet."""

from argparse import ArgumentParser
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError

from accounts import customers
from billing import ledger, statements
from billing.amounts import read_amount, read_reference
from billing.models import Entry


class Command(BaseCommand):
    help = "Grant an account credit; a negative amount takes it back."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("account", help="the account's name")
        parser.add_argument("amount", help="in the currency's unit, such as 25 or -0.5")
        parser.add_argument("--reason", required=True, help="why; stored with the entry")
        parser.add_argument(
            "--kind",
            choices=Entry.Kind.values,
            default=Entry.Kind.GRANT,
            help="a top_up is what the customer paid, and needs --reference (default: %(default)s)",
        )
        parser.add_argument(
            "--reference",
            default="",
            help="the id of the payment; a reference that was posted before is rejected",
        )
        parser.add_argument("--force", action="store_true", help="let the balance fall below zero")

    def handle(self, *_args: Any, **options: Any) -> None:
        try:
            self.post(options)
        except ValueError as error:
            raise CommandError(str(error)) from None

    def post(self, options: Mapping[str, Any]) -> None:
        """Post the entry; raise ValueError if an option or the ledger does not allow it."""
        account = customers.find(options["account"])
        amount = read_amount(options["amount"], settings.CURRENCY)
        kind, reference = Entry.Kind(options["kind"]), read_reference(options["reference"])
        if kind == Entry.Kind.TOP_UP and not reference:
            raise ValueError("A top_up needs --reference, so that it is never posted twice.")
        after = (statements.balance(account) or Decimal(0)) + amount
        if amount < 0 and after < 0 and not options["force"]:
            raise ValueError(
                f"That would leave {account} at {after:f} {settings.CURRENCY}, and its requests "
                "would be rejected. Add --force if you mean it."
            )
        ledger.post(account, amount, kind=kind, reason=options["reason"], reference=reference)
        balance = statements.balance(account)
        self.stdout.write(f"{amount:f} {settings.CURRENCY} posted. {account} now has {balance:f}.")
