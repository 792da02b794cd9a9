"""Revoke an API key by its number."""

from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from accounts import keys
from accounts.models import ApiKey


class Command(BaseCommand):
    help = (
        "Revoke an API key. Its next request is rejected, and its running responses are cancelled "
        "within a second and billed for the tokens produced. Its usage is kept."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("key", type=int, metavar="ID", help="the key's number, as in the admin")

    def handle(self, *_args: Any, **options: Any) -> None:
        key = ApiKey.objects.select_related("account").filter(pk=options["key"]).first()
        if key is None:
            raise CommandError(f"No key {options['key']}.")
        if keys.revoke(key.pk):
            self.stdout.write(f"Key {key.pk} '{key.name}' of {key.account} is revoked.")
        else:
            since = f"{key.revoked_at:%F %R} UTC"
            self.stdout.write(f"Key {key.pk} '{key.name}' was revoked before, on {since}.")
