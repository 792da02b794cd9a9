"""Add prices to the price book, from the bundled list or from a file."""

from argparse import ArgumentParser
from collections import Counter
from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError
from django.utils import timezone

from billing import price_book
from billing.pricing import InvalidPrice

BUNDLED = Path(__file__).resolve().parents[2] / "seeds" / "prices.csv"


class Command(BaseCommand):
    help = (
        "Add prices of popular models. The bundled list adds prices only for models without one, "
        "so it never overrides yours. With --file, prices that differ become new versions from now "
        "on."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        columns = ",".join(price_book.COLUMNS)
        parser.add_argument("--file", type=Path, help=f"a CSV file with the columns {columns}")

    def handle(self, *_args: Any, **options: Any) -> None:
        file: Path | None = options["file"]
        lines = read(file or BUNDLED)
        added = add_prices(lines, override=file is not None)
        self.stdout.write(f"{added} prices added, {len(lines) - added} left unchanged.")


def add_prices(lines: list[price_book.PriceLine], *, override: bool) -> int:
    """Add the prices that differ; return how many. `override` also replaces existing prices."""
    now = timezone.now()
    effective = price_book.effective_prices(now)
    added = 0
    for line in lines:
        price = effective.get(line.model)
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
    counts = Counter(line.model for line in lines)
    repeated = sorted(model for model, count in counts.items() if count > 1)
    if repeated:
        raise CommandError(f"{path}: models with more than one price: {', '.join(repeated)}")
    return lines
