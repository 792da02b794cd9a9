"""Numbered system checks: settings of the bill that cannot work stop the start."""

import re
from pathlib import Path
from typing import Any

from django.conf import settings
from django.core import checks
from django.db import Error, connections

from billing import configuration
from billing.models import BillingConfig
from billing.money import scale_of


def register() -> None:
    checks.register(check_currency, "billing")
    checks.register(check_lease, "billing")
    checks.register(check_transactions, "billing")
    checks.register(check_configuration, "billing")


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
    found = _configuration()
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


def _configuration() -> BillingConfig | None:
    """Return the database's row; None while there is no database to ask.

    A database that is away or not migrated must not stop a command: `/readyz` tells of both.
    """
    connection = connections["default"]
    if connection.vendor == "sqlite" and not Path(connection.settings_dict["NAME"]).exists():
        return None  # Connecting would create an empty file.
    opened_here = connection.connection is None
    try:
        return configuration.read()
    except Error:
        return None
    finally:
        if opened_here:
            connection.close()  # A command that runs for long keeps no connection for this.
