"""Keep when each key was last used: coarsely, and never on a request's way to the model."""

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
    """Remember that a key was used; the database learns it with the next flush."""
    with _lock:
        _noted[key_id] = now


def flush(**_signal: Any) -> None:
    """Write what was noted, at most once in LAST_USED_EVERY; runs when an answer has been sent."""
    # Django returned the connection of this request before, so it does not return this one.
    with released_connection():
        try:
            for key_id, used_at in _take().items():
                ApiKey.objects.filter(pk=key_id).update(last_used_at=used_at)
        except Error as error:
            # The date is only for people to look at: nothing fails for it.
            logger.warning("Could not write when keys were last used: %s", type(error).__name__)


def _take() -> dict[int, datetime]:
    global _noted, _next_flush
    with _lock:
        if not _noted or time.monotonic() < _next_flush:
            return {}
        _next_flush = time.monotonic() + settings.LAST_USED_EVERY.total_seconds()
        taken, _noted = _noted, {}
        return taken
