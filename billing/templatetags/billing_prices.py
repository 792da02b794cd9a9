"""Which models are for sale, and the menu of the back-office."""

from collections.abc import Iterable
from datetime import datetime

from django import template
from django.utils import timezone

from billing import price_book

register = template.Library()


@register.filter
def unpriced(models: Iterable[str] | None) -> list[str]:
    """Return those of the models that have no price, neither effective nor scheduled."""
    names, now = list(models or []), timezone.now()
    priced = {**price_book.effective_prices(now, names), **price_book.upcoming(names, now)}
    return [name for name in names if name not in priced]


@register.filter
def priced_later(models: Iterable[str] | None) -> list[tuple[str, datetime]]:
    """Return those of the models whose first price is still to come, and when it begins."""
    return sorted(price_book.upcoming(list(models or []), timezone.now()).items())


@register.filter
def answering(models: Iterable[str] | None) -> list[str]:
    """Return those of the models that are for sale and, by their name, answer prompts."""
    names = list(models or [])
    priced = price_book.effective_prices(timezone.now(), names)
    return [name for name in names if name in priced and "embed" not in name]
