"""Prepare the operator's Ollama for a first request: set prices of its models, choose one."""

from collections.abc import Callable
from typing import Any

# Per 1,000 tokens of prompt and completion.
TRIAL_PRICE = "0.0005", "0.001"
CHANGE = ".venv/bin/python manage.py set_price NAME --input 0.002 --output 0.004"


def prepare(say: Callable[[str], None], *, but_for: str) -> str | None:
    """Set prices of the installed models, and return the smallest that generates text, or None.

    Prices are set only while the demo account, `but_for`, is the only customer. Later an operator
    may have left a model without a price on purpose.
    """
    from accounts.models import Account

    models = installed()
    if not Account.objects.exclude(name=but_for).exists():
        price([name_of(model) for model in models], say)
    return smallest_chat_model(models)


def installed() -> list[dict[str, Any]]:
    """Return the models that are installed in Ollama, the smallest first, without cloud models."""
    from gateway import catalogue
    from gateway.upstream.client import configured_client

    listing = configured_client().fetch("tags")
    local = catalogue.visible(listing, catalogue.allowed_models([], sees_all=True), {})
    return sorted(local, key=lambda entry: entry.get("size") or 0)


def name_of(entry: dict[str, Any]) -> str:
    from gateway import catalogue

    return catalogue.name_of(entry)


def price(names: list[str], say: Callable[[str], None]) -> None:
    """Set the trial price of every model that never had a price, and print it."""
    from django.conf import settings
    from django.utils import timezone

    from billing import price_book
    from billing.models import ModelPrice

    now = timezone.now()
    known = set(ModelPrice.objects.filter(model__in=names).values_list("model", flat=True))
    new = sorted({name for name in names if name and name not in known})
    for name in new:
        line = price_book.read_line(name, *TRIAL_PRICE)
        price_book.schedule(line, effective_from=now, now=now)
    if new:
        tariff = f"{TRIAL_PRICE[0]} / {TRIAL_PRICE[1]} {settings.CURRENCY} per 1,000 tokens"
        say(f"Priced for this trial at {tariff}: {', '.join(new)}. To change one: {CHANGE}")


def smallest_chat_model(models: list[dict[str, Any]]) -> str | None:
    """Return the smallest model with a price that generates text, or None."""
    from django.utils import timezone

    from billing import price_book

    priced = price_book.effective_prices(timezone.now(), [name_of(model) for model in models])
    names = (name_of(model) for model in models)
    return next((name for name in names if name in priced and answers_prompts(name)), None)


def answers_prompts(name: str) -> bool:
    """Check the model's capabilities, or its name if Ollama reports no capabilities."""
    from gateway.errors import GatewayError
    from gateway.upstream.client import configured_client

    try:
        capabilities = configured_client().fetch("show", {"model": name}).get("capabilities")
    except GatewayError:
        return False
    if isinstance(capabilities, list):
        return "completion" in capabilities
    return "embed" not in name
