"""Numbered system checks: invalid billing settings stop the start."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from django.conf import settings
from django.core import checks
from django.db import Error, connections

from billing import append_only, configuration
from billing.money import scale_of

Result = TypeVar("Result")


def register() -> None:
    checks.register(check_currency, "billing")
    checks.register(check_lease, "billing")
    checks.register(check_transactions, "billing")
    checks.register(check_configuration, "billing")
    # Only when the server starts, because `migrate` must be able to restore the triggers.
    checks.register(check_guards, "billing", deploy=True)


def check_currency(**_kwargs: Any) -> list[checks.CheckMessage]:
    if re.fullmatch(r"[A-Z]{3}", settings.CURRENCY):
        return []
    return [
        checks.Error("CURRENCY must be a code of three letters, such as USD.", id="billing.E001")
    ]


def check_lease(**_kwargs: Any) -> list[checks.CheckMessage]:
    if settings.HOLD_LEASE_SECONDS > 0:
        return []
    return [checks.Error("HOLD_LEASE_SECONDS must be greater than zero.", id="billing.E002")]


def check_transactions(**_kwargs: Any) -> list[checks.CheckMessage]:
    """Other processes must see a hold at once, and a stream ends after its view's transaction."""
    if not settings.DATABASES["default"].get("ATOMIC_REQUESTS"):
        return []
    return [checks.Error("ATOMIC_REQUESTS must be off.", id="billing.E003")]


def check_configuration(**_kwargs: Any) -> list[checks.CheckMessage]:
    """The currency and the scale must be those that the database's amounts were written in."""
    row = _query(configuration.read)
    if row is None:
        return []
    if row.currency != settings.CURRENCY:
        message = (
            f"CURRENCY is {settings.CURRENCY}, but the amounts of this database are {row.currency}."
        )
        hint = f"Set CURRENCY={row.currency}, or use another database."
        return [checks.Error(message, hint=hint, id="billing.E004")]
    if row.scale != scale_of(row.currency):
        message = (
            f"This database stores {row.currency} with {row.scale} decimals, "
            f"but this version uses {scale_of(row.currency)}."
        )
        hint = "Use the version of the gateway that created the database."
        return [checks.Error(message, hint=hint, id="billing.E004")]
    return []


def check_guards(**_kwargs: Any) -> list[checks.CheckMessage]:
    """Only these triggers prevent changes to usage rows, prices, entries and limit changes."""
    missing = _query(lambda: append_only.missing(connections["default"]))
    if not missing:
        return []
    message = f"Triggers that guard append-only tables are missing: {', '.join(missing)}."
    hint = "Run manage.py migrate, which restores them, and then manage.py reconcile."
    return [checks.Error(message, hint=hint, id="billing.E005")]


def _query(read: Callable[[], Result]) -> Result | None:
    """Return what `read` returns, or None if the database does not exist or does not respond.

    An absent or unmigrated database must not stop a command. `/readyz` reports both.
    """
    connection = connections["default"]
    if connection.vendor == "sqlite" and not Path(connection.settings_dict["NAME"]).exists():
        return None  # Connecting would create an empty file.
    opened_here = connection.connection is None
    try:
        return read()
    except Error:
        return None
    finally:
        if opened_here:
            connection.close()  # A long-running command should not keep this connection open.
