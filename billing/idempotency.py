"""Let one `Idempotency-Key` of one API key pay once a day. Written in the hold's transaction.

A key is free again when its request ended without a charge, so a client may repeat what failed.
"""

from datetime import timedelta
from decimal import Decimal
from uuid import UUID

from django.conf import settings
from django.db import connection
from django.db.models import Q

from billing import clock
from billing.models import Hold, IdempotencyKey, TokenUsage
from gateway.metering import (
    Idempotency,
    IdempotencyKeyInUse,
    IdempotencyKeyMismatch,
    IdempotencyKeyUsed,
)

LIFETIME = timedelta(hours=24)


def claim(api_key_id: int, named: Idempotency, request_id: UUID) -> None:
    """Record which request has a key; raise why another one has it.

    Who comes second waits in `_insert` until the first has committed or rolled back, and then has
    the entry locked, whether it could change it or not. What the first left is read by statements
    after that: on PostgreSQL the one that waited sees all other rows as they were before.
    """
    if _insert(api_key_id, named, request_id):
        return
    first = IdempotencyKey.objects.get(api_key_id=api_key_id, digest=named.digest)
    _refuse_unless_free(first, named)
    IdempotencyKey.objects.filter(pk=first.pk).update(
        fingerprint=named.fingerprint, request_id=request_id, expires_at=clock.now(LIFETIME)
    )


# Inserts a key, or replaces one that has expired. The ORM cannot put a condition on the update.
_INSERT = """
INSERT INTO billing_idempotencykey (api_key_id, digest, fingerprint, request_id, expires_at)
VALUES (%s, %s, %s, %s, {expires_at})
ON CONFLICT (api_key_id, digest) DO UPDATE SET
    fingerprint = EXCLUDED.fingerprint,
    request_id = EXCLUDED.request_id,
    expires_at = EXCLUDED.expires_at
WHERE billing_idempotencykey.expires_at <= {now}
"""


def _insert(api_key_id: int, named: Idempotency, request_id: UUID) -> bool:
    """Write a key unless there is one in force; tell whether it was written."""
    expires_at, later = clock.now_sql(LIFETIME)
    now, at_once = clock.now_sql()
    field = IdempotencyKey._meta.get_field("request_id")
    request = field.get_db_prep_save(request_id, connection)
    values = [api_key_id, named.digest, named.fingerprint, request]
    with connection.cursor() as cursor:
        cursor.execute(_INSERT.format(expires_at=expires_at, now=now), [*values, *later, *at_once])
        changed: int = cursor.rowcount
    return changed == 1


def _refuse_unless_free(first: IdempotencyKey, named: Idempotency) -> None:
    """Raise why a key cannot be used again, unless its request ended without a charge."""
    request_id = str(first.request_id)
    # The hold before the row: a hold that has ended has its row by then.
    runs = Hold.objects.filter(pk=first.request_id, state=Hold.State.OPEN).exists()
    its_rows = Q(request_id=first.request_id) | Q(adjusts=first.request_id)
    rows = [] if runs else list(TokenUsage.objects.filter(its_rows, billed=True))
    if not runs and not rows:
        return
    if first.fingerprint != named.fingerprint:
        raise IdempotencyKeyMismatch(
            f"Request {request_id} had this Idempotency-Key and another body or address. "
            "Send a new key with each new request.",
            original_request_id=request_id,
        )
    if runs:
        raise IdempotencyKeyInUse(
            f"Request {request_id} has this Idempotency-Key and still runs. Wait for its end.",
            original_request_id=request_id,
        )
    cost = sum((row.cost for row in rows), Decimal(0))
    raise IdempotencyKeyUsed(
        f"Request {request_id} had this Idempotency-Key, has ended and cost {cost:f} "
        f"{settings.CURRENCY}. Its response is not stored. To ask, and pay, again send a new key.",
        original_request_id=request_id,
        cost=f"{cost:f}",
        currency=settings.CURRENCY,
    )


def forget_expired() -> int:
    """Remove the keys whose day is over; return how many."""
    return IdempotencyKey.objects.filter(expires_at__lte=clock.now()).delete()[0]
