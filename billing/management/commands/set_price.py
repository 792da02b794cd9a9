"""Set a model's price from now on, or from a later time."""

from argparse import ArgumentParser
from datetime import UTC, datetime
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError
from django.utils import timezone

from accounts.names import alike
from billing import price_book
from billing.models import ModelPrice
from billing.price_book import PriceLine
from billing.pricing import InvalidPrice, per_1m
from gateway import providers


class Command(BaseCommand):
    help = "Add a version of a model's price. Past usage keeps the price it had."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("model", help="any spelling: llama3, LLAMA3:latest, hf.co/user/repo:q4")
        parser.add_argument(
            "--input", required=True, metavar="PRICE", help="price of 1,000 prompt tokens"
        )
        parser.add_argument(
            "--output",
            metavar="PRICE",
            help="price of 1,000 completion tokens (default: the same as --input)",
        )
        parser.add_argument(
            "--from",
            dest="start",
            metavar="TIME",
            help="when the price starts, such as 2026-12-01 or 2026-12-01T08:00+01:00, in UTC if "
            "it has no offset (default: now)",
        )
        parser.add_argument(
            "--force", action="store_true", help="accept a price far above the usual one"
        )

    def handle(self, *_args: Any, **options: Any) -> None:
        now = timezone.now()
        start = parse_time(options["start"]) or now
        try:
            line = price_book.read_line(options["model"], options["input"], options["output"])
            price = add_price(line, start, now, force=options["force"])
        except InvalidPrice as error:
            raise CommandError(str(error)) from None
        self.stdout.write(f"{price} UTC")
        self.stdout.write(per_million(line))
        if warning := not_installed_warning(line.model):
            self.stderr.write(warning)


def add_price(line: PriceLine, start: datetime, now: datetime, *, force: bool) -> ModelPrice:
    """Schedule a price; raise InvalidPrice if it is unusual and `force` is off."""
    warning = price_book.unusual_price_warning(line, now)
    if warning and not force:
        raise InvalidPrice(f"{warning} Add --force if you mean it.")
    return price_book.schedule(line, effective_from=start, now=now)


def per_million(line: PriceLine) -> str:
    """Return a price per 1,000,000 tokens, as other vendors publish it."""
    rates = line.rates
    both = f"{per_1m(rates.prompt):f} input, {per_1m(rates.completion):f} output"
    return f"That is {both}, in {settings.CURRENCY} per 1,000,000 tokens."


def not_installed_warning(model: str) -> str | None:
    """Return a warning if Ollama answers and does not have the model."""
    installed = providers.installed_models()
    if installed is None or model in installed:
        return None
    closest = alike(model, installed)
    hint = f"; did you mean {closest}?" if closest else "."
    return f"Warning: {model} is not installed at Ollama{hint}"


def parse_time(text: str | None) -> datetime | None:
    if text is None:
        return None
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        raise CommandError(f"--from takes a time such as 2026-12-01T08:00; not '{text}'.") from None
    return time if time.tzinfo else time.replace(tzinfo=UTC)
