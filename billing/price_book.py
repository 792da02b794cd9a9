"""The price book: the only writer of ModelPrice, and the look-up of the price in force."""

import csv
import io
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from datetime import datetime
from statistics import median

from django.contrib.auth.models import User
from django.db.models import OuterRef, Subquery
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


def in_force(model: str, now: datetime | RawSQL) -> ModelPrice | None:
    """Return the newest version that has begun; None if the model was never priced."""
    begun = ModelPrice.objects.filter(model=model, effective_from__lte=now)
    return begun.order_by("-effective_from").first()


def all_in_force(
    now: datetime | RawSQL, models: Collection[str] | None = None
) -> dict[str, ModelPrice]:
    """Return the version in force of every priced model, or of those given, by name."""
    begun = ModelPrice.objects.filter(effective_from__lte=now)
    newest = begun.filter(model=OuterRef("model")).order_by("-effective_from").values("pk")[:1]
    found = begun.filter(pk=Subquery(newest))
    if models is not None:
        found = found.filter(model__in=models)
    return {price.model: price for price in found}


def not_for_sale(names: Collection[str], now: datetime) -> list[str]:
    """Return those of some names, in any spelling, that no model with a price in force has."""
    priced = all_in_force(now)
    return [name for name in names if _canonical(name) not in priced]


def begins(models: Collection[str], now: datetime) -> dict[str, datetime]:
    """Return when the first price of each of some models begins that has none in force yet."""
    later = ModelPrice.objects.filter(model__in=models, effective_from__gt=now)
    begun = all_in_force(now, models)
    # The earliest comes last, and stays.
    newest_first = later.order_by("-effective_from").values_list("model", "effective_from")
    return {model: when for model, when in newest_first if model not in begun}


# From how many times a usual price on a new one is taken for a slip: per 1,000 for per million.
UNUSUAL = 100


def doubt(line: PriceLine, now: datetime) -> str | None:
    """Say why a price looks like a slip: far above the model's last or the median price."""
    last = in_force(line.model, now)
    if last is not None:
        usual, whose = max(last.prompt_price, last.completion_price), "the model's price now"
    else:
        known = [max(p.prompt_price, p.completion_price) for p in all_in_force(now).values()]
        usual, whose = int(median(known)) if known else 0, "the median of all prices"
    asked = max(line.rates.prompt, line.rates.completion)
    if not usual or asked < UNUSUAL * usual:
        return None
    return (
        f"{per_1m(asked):f} per 1,000,000 tokens is {asked // usual:,} times {whose}, "
        f"{per_1m(usual):f}. Prices are given per 1,000 tokens."
    )


def _canonical(name: str) -> str | None:
    try:
        return canonical(name)
    except InvalidName:
        return None


def schedule(
    line: PriceLine, *, effective_from: datetime, now: datetime, by: User | None = None
) -> ModelPrice:
    """Add a price version; raise InvalidPrice if it would begin in the past or twice at once."""
    if effective_from < now:
        raise InvalidPrice("A price cannot begin in the past: what was used is billed already.")
    twice = ModelPrice.objects.filter(model=line.model, effective_from=effective_from)
    if twice.exists():
        raise InvalidPrice(f"{line.model} has a price from that very moment already.")
    return ModelPrice.objects.create(
        model=line.model,
        effective_from=effective_from,
        prompt_price=line.rates.prompt,
        completion_price=line.rates.completion,
        created_by=by,
        author=authors.name_of(by),
    )


def read_line(model: str, prompt: str, completion: str | None = None) -> PriceLine:
    """Read a name and prices per 1,000 tokens; completions cost as prompts unless said.

    Raises InvalidPrice, also for a bad name.
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
