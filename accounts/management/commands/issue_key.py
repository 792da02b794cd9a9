"""Issue an API key. Only the key is written to standard output."""

import re
from argparse import ArgumentParser
from datetime import timedelta
from typing import Any

from django.core.management.base import BaseCommand, CommandError
from django.utils import timezone

from accounts import customers, keys
from accounts.models import CUSTOMER_SCOPES, Membership, Scope
from accounts.names import read_name

UNITS = {"h": "hours", "d": "days", "w": "weeks"}


class Command(BaseCommand):
    help = "Issue an API key for an account. The key is printed once and stored nowhere."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("account", help="the account's name")
        parser.add_argument(
            "--name", required=True, help="what the key is for, such as 'ci' or 'laptop'"
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
        try:
            account, name = customers.find(options["account"]), read_name(options["name"])
        except ValueError as error:
            raise CommandError(str(error)) from None
        models = parse_models(options["models"])
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
        self.stderr.write(
            f"Key {key.pk} '{key.name}' for {account}. Copy it now; it is not stored:"
        )
        self.stdout.write(secret)


def parse_models(text: str | None) -> list[str]:
    """Return the named models. An empty list would allow every model, so it is rejected."""
    models = [model.strip() for model in (text or "").split(",") if model.strip()]
    if text is not None and not models:
        raise CommandError("--models names at least one model. Leave it out to allow every model.")
    for model in models:
        if len(model.split()) > 1:
            commas = ",".join(model.split())
            raise CommandError(f"Separate the models by commas: --models {commas}")
    return models


def parse_scopes(text: str) -> list[str]:
    scopes = [scope.strip() for scope in text.split(",") if scope.strip()]
    unknown = [scope for scope in scopes if scope not in Scope.values]
    if unknown or not scopes:
        raise CommandError(f"Scopes are {', '.join(Scope.values)}; got '{text}'.")
    return scopes


def parse_lifetime(text: str | None) -> timedelta | None:
    """Parse a lifetime such as '90d'; None means that the key never expires."""
    if text is None:
        return None
    match = re.fullmatch(r"([1-9][0-9]{0,4})([hdw])", text)
    if match is None:
        raise CommandError(f"--expires takes a number and h, d or w, such as 90d; not '{text}'.")
    return timedelta(**{UNITS[match[2]]: int(match[1])})
