"""Which models are for sale, and the menu of the back-office."""

from collections.abc import Iterable

from django import template
from django.utils import timezone

from billing import prices

register = template.Library()


@register.filter
def unpriced(models: Iterable[str] | None) -> list[str]:
    """Return those of the models that have no price in force."""
    names = list(models or [])
    in_force = prices.all_in_force(timezone.now(), names)
    return [name for name in names if name not in in_force]


@register.filter
def answering(models: Iterable[str] | None) -> list[str]:
    """Return those of the models that are for sale and, by their name, answer prompts."""
    names = list(models or [])
    in_force = prices.all_in_force(timezone.now(), names)
    return [name for name in names if name in in_force and "embed" not in name]
