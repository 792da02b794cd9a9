"""Set a model's price from now, or from a moment to come."""

from argparse import ArgumentParser
from datetime import UTC, datetime
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError
from django.utils import timezone

from accounts.names import alike
from billing import price_book
from billing.pricing import InvalidPrice, per_1m
from gateway import providers


class Command(BaseCommand):
    help = "Add a version of a model's price. What was used before keeps the price it had."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("model", help="any spelling: llama3, LLAMA3:latest, hf.co/user/repo:q4")
        parser.add_argument(
            "--input", required=True, metavar="P", help="price per 1,000 tokens read"
        )
        parser.add_argument(
            "--output", metavar="P", help="price per 1,000 tokens written (default: as --input)"
        )
        parser.add_argument(
            "--from",
            dest="begins",
            metavar="T",
            help="when it begins, as 2026-12-01 or 2026-12-01T08:00+01:00; UTC unless said "
            "(default: now)",
        )

        parser.add_argument(
            "--force", action="store_true", help="set a price that is far above the usual one"
        )

    def handle(self, *_args: Any, **options: Any) -> None:
        now = timezone.now()
        begins = parse_moment(options["begins"]) or now
        try:
            line = price_book.read_line(options["model"], options["input"], options["output"])
            doubt = price_book.unusual_price_warning(line, now)
            if doubt and not options["force"]:
                raise CommandError(f"{doubt} Add --force if it is meant.")
            price = price_book.schedule(line, effective_from=begins, now=now)
        except InvalidPrice as error:
            raise CommandError(str(error)) from None
        self.stdout.write(f"{price} UTC")
        self.stdout.write(per_million(line))
        installed = providers.installed_models()
        if installed is not None and line.model not in installed:
            meant = alike(line.model, installed)
            hint = f"; did you mean {meant}?" if meant else "."
            self.stderr.write(f"Warning: {line.model} is not installed at Ollama{hint}")


def per_million(line: price_book.PriceLine) -> str:
    """Say a price in the unit that others publish."""
    tokens = "per 1,000,000 tokens"
    rates = line.rates
    both = f"{per_1m(rates.prompt):f} read, {per_1m(rates.completion):f} written"
    return f"That is {both}, in {settings.CURRENCY} {tokens}."


def parse_moment(text: str | None) -> datetime | None:
    if text is None:
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise CommandError(f"--from takes a time such as 2026-12-01T08:00; not '{text}'.") from None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
