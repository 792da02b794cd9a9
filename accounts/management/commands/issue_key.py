"""Issue an API key; standard output carries the key and nothing else."""

import re
from argparse import ArgumentParser
from datetime import timedelta
from typing import Any

from django.core.exceptions import ValidationError
from django.core.management.base import BaseCommand, CommandError
from django.utils import timezone

from accounts import keys
from accounts.models import CUSTOMER_SCOPES, Account, Membership, Scope
from accounts.names import alike, refuse_unseen

UNITS = {"h": "hours", "d": "days", "w": "weeks"}


class Command(BaseCommand):
    help = "Issue an API key for an account. The key is printed once and stored nowhere."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("account", help="the account's name")
        parser.add_argument(
            "--name", required=True, help="what the key is for, e.g. 'ci' or 'laptop'"
        )
        parser.add_argument(
            "--scopes",
            default=",".join(CUSTOMER_SCOPES),
            help=f"comma-separated: {', '.join(Scope.values)} (default: %(default)s); "
            "'models' lets the key pull and delete models",
        )
        parser.add_argument("--expires", metavar="90d", help="lifetime: a number and h, d or w")
        parser.add_argument(
            "--models", help="comma-separated models the key may use (default: all)"
        )

    def handle(self, *_args: Any, **options: Any) -> None:
        account = find_account(options["account"])
        name, models = parse_name(options["name"]), parse_models(options["models"])
        try:
            key, secret = keys.issue(
                account,
                name=name,
                scopes=parse_scopes(options["scopes"]),
                allowed_models=models,
                expires_in=parse_lifetime(options["expires"]),
            )
        except Membership.DoesNotExist:
            raise CommandError(f"Account '{account}' has no owner; add one in the admin.") from None
        for model in keys.not_for_sale(models, timezone.now()):
            self.stderr.write(f"Warning: '{model}' has no price, so the key cannot use it yet.")
        self.stderr.write(f"Key {key.pk} '{key.name}' for {account}. It is shown only now:")
        self.stdout.write(secret)


def find_account(name: str) -> Account:
    """Return the account of a name, by its exact spelling."""
    account = Account.objects.filter(name=name).first()
    if account is not None:
        return account
    if meant := alike(name, Account.objects.values_list("name", flat=True)):
        raise CommandError(f"No account '{name}'. Did you mean '{meant}'?")
    raise CommandError(f"No account '{name}'. Create it: manage.py create_account '{name}'")


def parse_name(text: str) -> str:
    """Return the name of an account or a key."""
    name = text.strip()
    if not name or len(name) > 100:
        raise CommandError("A name has 1 to 100 characters.")
    try:
        refuse_unseen(name)
    except ValidationError as error:
        raise CommandError(error.messages[0]) from None
    return name


def parse_models(text: str | None) -> list[str]:
    """Return the models that are named; refuse to name none, for that would allow every model."""
    models = [model.strip() for model in (text or "").split(",") if model.strip()]
    if text is not None and not models:
        raise CommandError("--models names at least one model; leave it out for every model.")
    for model in models:
        if len(model.split()) > 1:
            commas = ",".join(model.split())
            raise CommandError(f"--models takes names with commas between: --models {commas}")
    return models


def parse_scopes(text: str) -> list[str]:
    scopes = [scope.strip() for scope in text.split(",") if scope.strip()]
    unknown = [scope for scope in scopes if scope not in Scope.values]
    if unknown or not scopes:
        raise CommandError(f"Scopes are {', '.join(Scope.values)}; got '{text}'.")
    return scopes


def parse_lifetime(text: str | None) -> timedelta | None:
    """Turn '90d' into a span; None means the key never expires."""
    if text is None:
        return None
    match = re.fullmatch(r"([1-9][0-9]{0,4})([hdw])", text)
    if match is None:
        raise CommandError(f"--expires takes a number and h, d or w, such as 90d; not '{text}'.")
    return timedelta(**{UNITS[match[2]]: int(match[1])})
