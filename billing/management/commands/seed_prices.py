"""Fill the price book, from the list that comes along or from one's own."""

from argparse import ArgumentParser
from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError
from django.utils import timezone

from billing import price_book
from billing.pricing import InvalidPrice

SEEDS = Path(__file__).resolve().parents[2] / "seeds" / "prices.csv"


class Command(BaseCommand):
    help = (
        "Price popular models. The list that comes along prices only models without a price, so "
        "it never overrides yours. With --file, prices that differ become new versions from now."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        columns = ",".join(price_book.COLUMNS)
        parser.add_argument("--file", type=Path, help=f"a CSV file with the columns {columns}")

    def handle(self, *_args: Any, **options: Any) -> None:
        own: Path | None = options["file"]
        lines = read(own or SEEDS)
        added = self.seed(lines, override=own is not None)
        kept = len(lines) - added
        self.stdout.write(f"{added} prices added, {kept} kept as they were.")

    def seed(self, lines: list[price_book.PriceLine], *, override: bool) -> int:
        now = timezone.now()
        known = price_book.effective_prices(now)
        added = 0
        for line in lines:
            price = known.get(line.model)
            if price is not None and (not override or price.rates == line.rates):
                continue
            price_book.schedule(line, effective_from=now, now=now)
            added += 1
        return added


def read(path: Path) -> list[price_book.PriceLine]:
    try:
        lines = price_book.read_list(path.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError) as error:
        raise CommandError(f"Cannot read {path}: {error}") from None
    except InvalidPrice as error:
        raise CommandError(f"{path}: {error}") from None
    twice = {line.model for line in lines if sum(line.model == o.model for o in lines) > 1}
    if twice:
        raise CommandError(f"{path}: priced more than once: {', '.join(sorted(twice))}")
    return lines
