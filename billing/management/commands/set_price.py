"""Set a model's price from now, or from a moment to come."""

from argparse import ArgumentParser
from datetime import UTC, datetime
from typing import Any

from django.core.management.base import BaseCommand, CommandError
from django.utils import timezone

from billing import prices
from billing.pricing import InvalidPrice


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

    def handle(self, *_args: Any, **options: Any) -> None:
        now = timezone.now()
        begins = parse_moment(options["begins"]) or now
        try:
            line = prices.read_line(options["model"], options["input"], options["output"])
            price = prices.schedule(line, effective_from=begins, now=now)
        except InvalidPrice as error:
            raise CommandError(str(error)) from None
        self.stdout.write(f"{price} UTC")


def parse_moment(text: str | None) -> datetime | None:
    if text is None:
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise CommandError(f"--from takes a time such as 2026-12-01T08:00; not '{text}'.") from None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
