"""Read a request's `Idempotency-Key` header.

A client that sends the same key again within a day is not served, and not charged, a second time.
No key is derived from anything else: a program that asks again after a lost response wants the
response, and refusing it does more harm than a second charge.
"""

import hashlib
import json
from typing import Any

from django.http import HttpRequest
from django.utils.crypto import salted_hmac

from gateway.errors import BadRequest
from gateway.metering import Idempotency

LONGEST = 255


def of(request: HttpRequest, body: dict[str, Any]) -> Idempotency | None:
    """Return the key a request carries, None without the header; raise BadRequest."""
    value: str | None = request.META.get("HTTP_IDEMPOTENCY_KEY")
    if value is None:
        return None
    if not (1 <= len(value) <= LONGEST and value.isascii() and value.isprintable()):
        raise BadRequest(f"Idempotency-Key must be 1 to {LONGEST} printable ASCII characters.")
    return Idempotency(
        # Without our secret: a new SECRET_KEY must not let a repeat through.
        digest=hashlib.sha256(value.encode()).hexdigest(),
        fingerprint=_fingerprint(request.path, body),
    )


def _fingerprint(path: str, body: dict[str, Any]) -> str:
    """Return a digest of what is asked: keyed, so that nobody who reads the database can find out
    a prompt by trying; of the parsed body, so that blanks and the order of keys do not count."""
    try:
        written = json.dumps([path, body], sort_keys=True)
    except RecursionError:
        raise BadRequest("The body is nested too deeply.") from None
    return salted_hmac("gateway.http.idempotency", written, algorithm="sha256").hexdigest()
