"""Record when each key was last used: at intervals, and after the response is sent."""

import logging
import threading
import time
from datetime import datetime
from typing import Any

from django.conf import settings
from django.db import Error

from accounts.connections import released_connection
from accounts.models import ApiKey

logger = logging.getLogger(__name__)

_lock = threading.Lock()
_noted: dict[int, datetime] = {}
_next_flush = 0.0


def note(key_id: int, now: datetime) -> None:
    """Note that a key was used. The next flush writes it to the database."""
    with _lock:
        _noted[key_id] = now


def flush(**_signal: Any) -> None:
    """Write the noted times, at most once per LAST_USED_EVERY. Runs after a response is sent."""
    # Django returned this request's connection before, so nothing else would return this one.
    with released_connection():
        try:
            for key_id, used_at in _take().items():
                ApiKey.objects.filter(pk=key_id).update(last_used_at=used_at)
        except Error as error:
            # The time is only information for operators. No request should fail because of it.
            logger.warning("Could not write when keys were last used: %s", type(error).__name__)


def _take() -> dict[int, datetime]:
    global _noted, _next_flush
    with _lock:
        if not _noted or time.monotonic() < _next_flush:
            return {}
        _next_flush = time.monotonic() + settings.LAST_USED_EVERY.total_seconds()
        taken, _noted = _noted, {}
        return taken
