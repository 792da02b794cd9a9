"""The price book: the only writer of ModelPrice, and the look-up of effective prices."""

import csv
import io
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from datetime import datetime
from statistics import median

from django.contrib.auth.models import User
from django.db.models.expressions import RawSQL

from accounts import authors
from billing.models import ModelPrice
from billing.pricing import InvalidPrice, Rates, per_1m, per_token
from gateway.names import InvalidName, canonical

COLUMNS = ["model", "input_per_1k", "output_per_1k"]


@dataclass(frozen=True, slots=True)
class PriceLine:
    """One line of a price list: a canonical model name and smallest units per token."""

    model: str
    rates: Rates


def effective_price(model: str, now: datetime | RawSQL) -> ModelPrice | None:
    """Return a model's effective version; None if it has none."""
    started = ModelPrice.objects.started(now).filter(model=model)
    return started.order_by("-effective_from").first()


def effective_prices(
    now: datetime | RawSQL, models: Collection[str] | None = None
) -> dict[str, ModelPrice]:
    """Return the effective version of each priced model, or of the given models, by name."""
    versions = ModelPrice.objects.effective(now)
    if models is not None:
        versions = versions.filter(model__in=models)
    return {version.model: version for version in versions}


def not_for_sale(names: Collection[str], now: datetime) -> list[str]:
    """Return the names, in any spelling, of models without an effective price."""
    priced = effective_prices(now)
    return [name for name in names if _canonical(name) not in priced]


def upcoming(models: Collection[str], now: datetime) -> dict[str, datetime]:
    """Return when the first price of each model starts, for models without an effective price."""
    scheduled = ModelPrice.objects.filter(model__in=models, effective_from__gt=now)
    priced = effective_prices(now, models)
    # The newest come first, so that the earliest start of a model replaces the later ones.
    starts = scheduled.order_by("-effective_from").values_list("model", "effective_from")
    return {model: start for model, start in starts if model not in priced}


# A new price this many times the usual one is probably per million tokens, not per 1,000.
UNUSUAL = 100


def unusual_price_warning(line: PriceLine, now: datetime) -> str | None:
    """Return a warning if a price is far above the model's price, or the median of all prices."""
    usual, name_of_usual = _usual_price(line.model, now)
    new = max(line.rates.prompt, line.rates.completion)
    if not usual or new < UNUSUAL * usual:
        return None
    return (
        f"{per_1m(new):f} per 1,000,000 tokens is {new // usual:,} times {name_of_usual}, "
        f"{per_1m(usual):f}. Enter prices per 1,000 tokens."
    )


def _usual_price(model: str, now: datetime) -> tuple[int, str]:
    """Return the price to compare a new one with, 0 if there is none, and what to call it."""
    current = effective_price(model, now)
    if current is not None:
        return max(current.prompt_price, current.completion_price), "the model's current price"
    others = [max(p.prompt_price, p.completion_price) for p in effective_prices(now).values()]
    return int(median(others)) if others else 0, "the median of all prices"


def _canonical(name: str) -> str | None:
    try:
        return canonical(name)
    except InvalidName:
        return None


def schedule(
    line: PriceLine, *, effective_from: datetime, now: datetime, by: User | None = None
) -> ModelPrice:
    """Add a price version; raise InvalidPrice if it starts in the past or with another one."""
    if effective_from < now:
        raise InvalidPrice("A price cannot start in the past: past usage is already billed.")
    same_start = ModelPrice.objects.filter(model=line.model, effective_from=effective_from)
    if same_start.exists():
        raise InvalidPrice(f"{line.model} already has a price that starts at that time.")
    return ModelPrice.objects.create(
        model=line.model,
        effective_from=effective_from,
        prompt_price=line.rates.prompt,
        completion_price=line.rates.completion,
        created_by=by,
        author=authors.name_of(by),
    )


def read_line(model: str, prompt: str, completion: str | None = None) -> PriceLine:
    """Read a name and prices per 1,000 tokens. `completion` defaults to the price of `prompt`.

    Raises InvalidPrice, also for an invalid name.
    """
    try:
        name = canonical(model)
    except InvalidName as error:
        raise InvalidPrice(f"'{model}': {error}") from None
    return PriceLine(name, Rates(per_token(prompt), per_token(completion or prompt)))


def read_list(text: str) -> list[PriceLine]:
    """Read a price list in CSV with the columns of `COLUMNS`; raise InvalidPrice with its line."""
    rows = csv.DictReader(io.StringIO(text))
    try:
        if rows.fieldnames is None or rows.fieldnames[:2] != COLUMNS[:2]:
            raise InvalidPrice(f"The first line must name the columns: {','.join(COLUMNS)}")
        return list(_lines(rows))
    except csv.Error as error:
        raise InvalidPrice(f"Line {rows.line_num}: {error}") from None


def _lines(rows: "csv.DictReader[str]") -> Iterator[PriceLine]:
    for row in rows:
        try:
            yield read_line(row["model"], row["input_per_1k"] or "", row.get("output_per_1k"))
        except InvalidPrice as error:
            raise InvalidPrice(f"Line {rows.line_num}: {error}") from None
