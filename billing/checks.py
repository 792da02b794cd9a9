"""Numbered system checks: settings of the bill that cannot work stop the start."""

import re
from typing import Any

from django.conf import settings
from django.core import checks


def register() -> None:
    checks.register(check_currency, "billing")
    checks.register(check_lease, "billing")
    checks.register(check_transactions, "billing")


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
