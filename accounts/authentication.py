"""Find the API key of a request: one indexed query, no writes.

This replaces knox's look-up. That one needs a second query for every key of the user, deletes rows
while it reads, and fails with a 500 if the token is not UTF-8.
"""

import base64
import re
from datetime import datetime

from django.db import connection
from django.utils import timezone
from django.utils.functional import SimpleLazyObject
from knox.auth import TokenAuthentication
from knox.crypto import hash_token
from rest_framework.authentication import get_authorization_header
from rest_framework.exceptions import AuthenticationFailed
from rest_framework.request import Request

from accounts import last_used
from accounts.connections import release_connection
from accounts.models import Account, ApiKey
from accounts.raw_rows import Columns

# A prefix that secret scanners know, and 256 random bits. Anything else costs no query.
SECRET_PATTERN = re.compile(rb"olg_[0-9a-f]{64}")

# Messages are ASCII: JSON escapes other characters, and people read the raw body.
BAD_KEY = "Invalid API key. Send it as 'Authorization: Bearer olg_...'."


# What a request reads of a key and its account; the ORM loads any other column when it is used.
KEY = Columns(
    ApiKey,
    "key",
    "id account user name last_four scopes allowed_models expiry revoked_at",
)
ACCOUNT = Columns(Account, "account", "id name status isolate_prompts")
FIND = (
    f"SELECT {KEY.names}, {ACCOUNT.names} "  # noqa: S608  # No input is in it.
    f"FROM {KEY.table} JOIN {ACCOUNT.table} ON account.id = key.account_id WHERE key.digest = %s"
)


class KeyAuthentication(TokenAuthentication):
    """Authenticate by a key in any header that clients put one into.

    `Authorization: Bearer KEY`; `Authorization: Basic …` with the key as the password, as clients
    send it for a URL with a user name; `x-api-key: KEY` (Anthropic); `api-key: KEY` (Azure).
    """

    def authenticate(self, request: Request) -> tuple[object, ApiKey] | None:
        credential = carried_credential(request)
        if credential is None:
            return None
        return self.authenticate_credentials(credential)

    def authenticate_credentials(self, token: bytes) -> tuple[object, ApiKey]:
        """Return the key's user and the key; raise AuthenticationFailed.

        A key belongs to its account, so it stays valid when its user may no longer log in.
        """
        if not SECRET_PATTERN.fullmatch(token):
            raise AuthenticationFailed(BAD_KEY)
        key = find(hash_token(token.decode("ascii")))
        release_connection()
        now = timezone.now()
        if key is None:
            raise AuthenticationFailed(BAD_KEY)
        if not key.is_usable(now):
            raise AuthenticationFailed(why_unusable(key, now))
        last_used.note(key.pk, now)
        # No view of the API reads the user, so it is loaded only when it is used.
        return SimpleLazyObject(lambda: key.user), key


def find(digest: str) -> ApiKey | None:
    """Return the key with a digest, and its account with it."""
    with connection.cursor() as cursor:
        cursor.execute(FIND, [digest])
        row = cursor.fetchone()
    if row is None:
        return None
    key = KEY.instance(row[: len(KEY)])
    key.account = ACCOUNT.instance(row[len(KEY) :])
    return key


def why_unusable(key: ApiKey, now: datetime) -> str:
    """Explain why a key is rejected. Only the holder of the secret sees this message."""
    if not key.has_ended(now):
        return "This account is suspended."
    how, when = ("was revoked", key.revoked_at) if key.revoked_at else ("expired", key.expiry)
    return (
        f"This API key, which ends in {key.last_four}, {how} on {when:%Y-%m-%d}. "
        "Ask the operator who issued it for a new one."
    )


def carried_credential(request: Request) -> bytes | None:
    """Return the secret that a request carries, or None; raise AuthenticationFailed."""
    words = get_authorization_header(request).split()
    if not words:
        key: str | None = request.META.get("HTTP_X_API_KEY", request.META.get("HTTP_API_KEY"))
        return None if key is None else key.strip().encode("utf-8", "replace")
    scheme, *credentials = words
    if len(credentials) != 1 or scheme.lower() not in (b"bearer", b"basic"):
        raise AuthenticationFailed(BAD_KEY)
    return credentials[0] if scheme.lower() == b"bearer" else _password(credentials[0])


def _password(credentials: bytes) -> bytes:
    """Return the password of Basic credentials; raise AuthenticationFailed."""
    try:
        return base64.b64decode(credentials, validate=True).partition(b":")[2]
    except ValueError:
        raise AuthenticationFailed(BAD_KEY) from None
