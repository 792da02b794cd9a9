"""Put money into an account's wallet."""

from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from accounts.management.commands.issue_key import find_account
from billing import ledger, statements
from billing.management.commands.create_account import parse_amount
from billing.models import Entry


class Command(BaseCommand):
    help = "Grant an account credit; a negative amount takes it back."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("account", help="the account's name")
        parser.add_argument("amount", help="in the currency's unit, such as 25 or -0.5")
        parser.add_argument("--reason", required=True, help="why; it stays in the books")

    def handle(self, *_args: Any, **options: Any) -> None:
        account = find_account(options["account"])
        amount = parse_amount(options["amount"])
        try:
            ledger.post(account, amount, kind=Entry.Kind.GRANT, reason=options["reason"])
        except ValueError as error:
            raise CommandError(str(error)) from None
        self.stdout.write(f"{account} has {statements.balance(account):f} now.")
