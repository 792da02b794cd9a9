"""Numbered system checks: settings of the bill that cannot work stop the start."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from django.conf import settings
from django.core import checks
from django.db import Error, connections

from billing import append_only, configuration
from billing.money import scale_of

Answer = TypeVar("Answer")


def register() -> None:
    checks.register(check_currency, "billing")
    checks.register(check_lease, "billing")
    checks.register(check_transactions, "billing")
    checks.register(check_configuration, "billing")
    # At the start of the server alone: `migrate` must be able to put them back.
    checks.register(check_guards, "billing", deploy=True)


def check_currency(**_kwargs: Any) -> list[checks.CheckMessage]:
    if re.fullmatch(r"[A-Z]{3}", settings.CURRENCY):
        return []
    return [checks.Error("CURRENCY must be a code of three letters, as USD.", id="billing.E001")]


def check_lease(**_kwargs: Any) -> list[checks.CheckMessage]:
    if settings.HOLD_LEASE_SECONDS > 0:
        return []
    return [checks.Error("HOLD_LEASE_SECONDS must be greater than zero.", id="billing.E002")]


def check_transactions(**_kwargs: Any) -> list[checks.CheckMessage]:
    """A hold must be seen by others at once, and a stream outlives its view's transaction."""
    if not settings.DATABASES["default"].get("ATOMIC_REQUESTS"):
        return []
    return [checks.Error("ATOMIC_REQUESTS must be off.", id="billing.E003")]


def check_configuration(**_kwargs: Any) -> list[checks.CheckMessage]:
    """A database keeps the currency and the scale that its amounts were written in."""
    found = _ask(configuration.read)
    if found is None:
        return []
    if found.currency != settings.CURRENCY:
        message = f"CURRENCY is {settings.CURRENCY}, but this database is kept in {found.currency}."
        hint = f"Set CURRENCY={found.currency}, or use another database."
        return [checks.Error(message, hint=hint, id="billing.E004")]
    if found.scale != scale_of(found.currency):
        message = (
            f"This database keeps {found.currency} with {found.scale} decimals, "
            f"and this version with {scale_of(found.currency)}."
        )
        hint = "Use the version of the gateway that the database was made with."
        return [checks.Error(message, hint=hint, id="billing.E004")]
    return []


def check_guards(**_kwargs: Any) -> list[checks.CheckMessage]:
    """Nothing else keeps a usage row, a price or an entry from being changed."""
    missing = _ask(lambda: append_only.missing(connections["default"]))
    if not missing:
        return []
    message = f"The database does not guard append-only rows; missing: {', '.join(missing)}."
    hint = "Run manage.py migrate, which puts them back; then manage.py reconcile."
    return [checks.Error(message, hint=hint, id="billing.E005")]


def _ask(question: Callable[[], Answer]) -> Answer | None:
    """Return what the database says; None while there is no database to ask.

    A database that is away or not migrated must not stop a command: `/readyz` tells of both.
    """
    connection = connections["default"]
    if connection.vendor == "sqlite" and not Path(connection.settings_dict["NAME"]).exists():
        return None  # Connecting would create an empty file.
    opened_here = connection.connection is None
    try:
        return question()
    except Error:
        return None
    finally:
        if opened_here:
            connection.close()  # A command that runs for long keeps no connection for this.
