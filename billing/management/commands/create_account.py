"""Create a customer: an account, its owner and a prepaid wallet."""

import re
import secrets
from argparse import ArgumentParser
from decimal import Decimal
from typing import Any

from django.conf import settings
from django.contrib.auth.models import User
from django.core.exceptions import ValidationError
from django.core.management.base import BaseCommand, CommandError
from django.core.validators import validate_email
from django.db import transaction

from accounts.management.commands.issue_key import parse_name
from accounts.models import Account, Membership
from billing import ledger
from billing.amounts import read_amount
from billing.models import Budget, Entry

NO_CREDIT = (
    "Next: manage.py grant '{}' 25 --reason '...'; its wallet is empty, and requests are refused "
    "until then"
)
SWITCH = {"on": True, "off": False}


class Command(BaseCommand):
    help = (
        "Create an account with an owner and a prepaid wallet. Without --credit the wallet is "
        "empty and nothing is served until `grant` fills it; --postpaid opens none."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("name", help="the account's name, unique")
        parser.add_argument("--email", default="", help="the owner's address")
        parser.add_argument("--credit", default="0", help="first credit, in the currency's unit")
        parser.add_argument(
            "--reference",
            default="",
            help="of the payment that --credit is from, such as its id; without one it is a grant",
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
        name, credit = parse_name(options["name"]), parse_amount(options["credit"])
        if credit < 0:
            raise CommandError("--credit must not be negative.")
        if credit and options["postpaid"]:
            raise CommandError("A postpaid account has no wallet to put credit in.")
        if same := Account.objects.filter(name__iexact=name).first():
            raise CommandError(f"There is an account '{same}' already.")
        reference, postpaid = parse_reference(options["reference"]), options["postpaid"]
        if reference and not credit:
            raise CommandError("--reference is of a payment; it needs --credit.")
        email = parse_email(options["email"])
        try:
            account = create(
                name,
                email,
                credit,
                reference,
                postpaid=postpaid,
                isolate_prompts=SWITCH.get(options["isolate_prompts"]),
            )
        except ValueError as error:
            raise CommandError(str(error)) from None
        self.stdout.write(f"The account {account.pk} '{account}' is there; credit {credit:f}.")
        if not credit and not postpaid:
            self.stdout.write(NO_CREDIT.format(account))
        self.stdout.write(f"Next: manage.py issue_key '{account}' --name first")


@transaction.atomic
def create(
    name: str,
    email: str,
    credit: Decimal,
    reference: str = "",
    *,
    postpaid: bool = False,
    isolate_prompts: bool | None = None,
) -> Account:
    account = Account.objects.create(name=name, isolate_prompts=isolate_prompts)
    Membership.objects.create(account=account, user=new_owner(name, email), role="owner")
    if not postpaid:
        ledger.open_budget(account, Budget.Unit.MONEY, Budget.Window.TOTAL)
    if credit:
        kind = Entry.Kind.TOP_UP if reference else Entry.Kind.GRANT
        ledger.post(account, credit, kind=kind, reason="First credit", reference=reference)
    return account


def new_owner(account_name: str, email: str) -> User:
    """Return a new user who cannot log in until an operator sets a password."""
    stem = re.sub(r"[^a-z0-9]+", "-", account_name.lower()).strip("-")[:100] or "owner"
    taken = User.objects.filter(username=stem).exists()
    username = f"{stem}-{secrets.token_hex(3)}" if taken else stem
    return User.objects.create_user(username, email=email)


def parse_amount(text: str) -> Decimal:
    try:
        return read_amount(text, settings.CURRENCY)
    except ValueError as error:
        raise CommandError(str(error)) from None


def parse_reference(text: str) -> str:
    reference = text.strip()
    if len(reference) > 100 or not reference.isprintable():
        raise CommandError("--reference has at most 100 printable characters.")
    return reference


def parse_email(text: str) -> str:
    """Return an address, or nothing for nothing."""
    try:
        if text:
            validate_email(text)
    except ValidationError:
        raise CommandError(
            f"--email takes an address such as it@acme.example; not '{text}'."
        ) from None
    return text
