"""Put money into an account's wallet."""

from argparse import ArgumentParser
from decimal import Decimal
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError

from accounts.management.commands.issue_key import find_account
from billing import ledger, statements
from billing.management.commands.create_account import parse_amount, parse_reference
from billing.models import Entry


class Command(BaseCommand):
    help = "Grant an account credit; a negative amount takes it back."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("account", help="the account's name")
        parser.add_argument("amount", help="in the currency's unit, such as 25 or -0.5")
        parser.add_argument("--reason", required=True, help="why; it stays in the books")
        parser.add_argument(
            "--kind",
            choices=Entry.Kind.values,
            default=Entry.Kind.GRANT,
            help="a top_up is what the customer paid, and needs --reference (default: %(default)s)",
        )
        parser.add_argument(
            "--reference",
            default="",
            help="of the payment, such as its id; one that was posted before is refused",
        )

        parser.add_argument("--force", action="store_true", help="let the balance fall below zero")

    def handle(self, *_args: Any, **options: Any) -> None:
        account = find_account(options["account"])
        amount, kind = parse_amount(options["amount"]), Entry.Kind(options["kind"])
        reference = parse_reference(options["reference"])
        if kind == Entry.Kind.TOP_UP and not reference:
            raise CommandError("A top_up needs --reference, so that it is never posted twice.")
        after = (statements.balance(account) or Decimal(0)) + amount
        if amount < 0 and after < 0 and not options["force"]:
            raise CommandError(
                f"That would leave {account} at {after:f} {settings.CURRENCY}, and its requests "
                "would be refused. Add --force if it is meant."
            )
        try:
            ledger.post(account, amount, kind=kind, reason=options["reason"], reference=reference)
        except ValueError as error:
            raise CommandError(str(error)) from None
        done = f"{amount:f} {settings.CURRENCY} posted."
        self.stdout.write(f"{done} {account} has {statements.balance(account):f} now.")
