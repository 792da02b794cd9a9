"""Functions that settings name by a dotted path, so that an app can call what it may not import.

An app imports only from the apps to its left, and billing imports only the port of the gateway. The
modules are loaded at the first call: REST framework's views are slow to import, and most commands
need none.
"""

from collections.abc import Callable, Collection
from typing import Any

from django.conf import settings
from django.utils.module_loading import import_string

from gateway.metering import Books


def books() -> Books:
    """Return what billing knows of prices and usage."""
    provider: Callable[[], Books] = import_string(settings.BOOKS)
    return provider()


def usable_models(request: Any) -> Callable[[str], bool]:
    """Return a function that decides whether the key of a request can use a model, by its canonical
    name and apart from its price."""
    provider: Callable[[Any], Callable[[str], bool]] = import_string(settings.USABLE_MODELS)
    return provider(request)


def installed_models() -> Collection[str] | None:
    """Return the canonical names of the installed models; None if the model server does not answer
    within two seconds."""
    provider: Callable[[], Collection[str] | None] = import_string(settings.INSTALLED_MODELS)
    return provider()
