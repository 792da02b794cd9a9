"""Create a customer: an account, its owner and a prepaid wallet."""

from argparse import ArgumentParser
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from django.conf import settings
from django.core.exceptions import ValidationError
from django.core.management.base import BaseCommand, CommandError
from django.core.validators import validate_email
from django.db import transaction

from accounts import customers
from accounts.models import Account
from accounts.names import read_name
from billing import ledger
from billing.amounts import read_amount, read_reference
from billing.models import Budget, Entry

NO_CREDIT = (
    "Next: manage.py grant '{}' 25 --reason '...'. Its wallet is empty, and its requests are "
    "rejected until then."
)
SWITCH = {"on": True, "off": False}


class Command(BaseCommand):
    help = (
        "Create an account with an owner and a prepaid wallet. Without --credit the wallet is "
        "empty, and requests are rejected until `grant` fills it. --postpaid creates no wallet."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("name", help="the account's name, unique")
        parser.add_argument("--email", default="", help="the owner's address")
        parser.add_argument("--credit", default="0", help="first credit, in the currency's unit")
        parser.add_argument(
            "--reference",
            default="",
            help="the id of the payment behind --credit; without it the credit is a grant",
        )
        parser.add_argument(
            "--postpaid", action="store_true", help="no wallet: spending is not limited by credit"
        )
        parser.add_argument(
            "--isolate-prompts",
            choices=SWITCH,
            help="for this account, instead of the setting ISOLATE_PROMPTS",
        )

    def handle(self, *_args: Any, **options: Any) -> None:
        try:
            account, credit = create(**arguments(options))
        except ValueError as error:
            raise CommandError(str(error)) from None
        self.stdout.write(f"Account {account.pk} '{account}' created; credit {credit:f}.")
        if not credit and not options["postpaid"]:
            self.stdout.write(NO_CREDIT.format(account))
        self.stdout.write(f"Next: manage.py issue_key '{account}' --name first")


def arguments(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of `create`; raise ValueError for options that contradict each other."""
    credit = read_amount(options["credit"], settings.CURRENCY)
    reference = read_reference(options["reference"])
    if credit < 0:
        raise ValueError("--credit must not be negative.")
    if credit and options["postpaid"]:
        raise ValueError("A postpaid account has no wallet to put credit in.")
    if reference and not credit:
        raise ValueError("--reference names a payment; it needs --credit.")
    return {
        "name": read_name(options["name"]),
        "email": read_email(options["email"]),
        "credit": credit,
        "reference": reference,
        "postpaid": options["postpaid"],
        "isolate_prompts": SWITCH.get(options["isolate_prompts"]),
    }


@transaction.atomic
def create(
    *,
    name: str,
    email: str,
    credit: Decimal,
    reference: str,
    postpaid: bool,
    isolate_prompts: bool | None,
) -> tuple[Account, Decimal]:
    """Create an account, its owner and its wallet; return it with its credit."""
    owner = customers.create_owner(customers.free_username(name), email)
    account = customers.create(name, owner=owner, isolate_prompts=isolate_prompts)
    if not postpaid:
        ledger.open_budget(account, Budget.Unit.MONEY, Budget.Window.TOTAL)
    if credit:
        kind = Entry.Kind.TOP_UP if reference else Entry.Kind.GRANT
        ledger.post(account, credit, kind=kind, reason="First credit", reference=reference)
    return account, credit


def read_email(text: str) -> str:
    """Return an email address, or an empty text unchanged; raise ValueError."""
    try:
        if text:
            validate_email(text)
    except ValidationError:
        message = f"--email takes an address such as it@acme.example; not '{text}'."
        raise ValueError(message) from None
    return text
