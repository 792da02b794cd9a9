"""Turn any credential a client carries into an account's key: one indexed query, no writes.

knox's own class costs a second query that loads every key of the user, deletes rows while it
reads, and answers 500 to a token that is not UTF-8; hence its look-up is replaced whole.
"""

import re
from datetime import datetime

from django.utils import timezone
from knox.auth import TokenAuthentication
from knox.crypto import hash_token
from rest_framework.authentication import get_authorization_header
from rest_framework.exceptions import AuthenticationFailed
from rest_framework.request import Request

from accounts import last_used
from accounts.connections import release_connection
from accounts.models import ApiKey

# A prefix that secret scanners know and 256 random bits. What does not look like this is refused
# without a query.
SECRET_PATTERN = re.compile(rb"olg_[0-9a-f]{64}")

# Every message is ASCII: what is not is escaped in JSON, and people read it raw.
BAD_KEY = "Invalid API key. Send it as 'Authorization: Bearer olg_...'."


class KeyAuthentication(TokenAuthentication):
    """Authenticate by `Authorization: Bearer KEY`, or `x-api-key: KEY` as Anthropic clients do."""

    def authenticate(self, request: Request) -> tuple[object, ApiKey] | None:
        credential = carried_credential(request)
        if credential is None:
            return None
        return self.authenticate_credentials(credential)

    def authenticate_credentials(self, token: bytes) -> tuple[object, ApiKey]:
        """Return the key's user and the key; raise AuthenticationFailed for every bad one.

        A key belongs to its account: that its user may no longer log in does not end it.
        """
        if not SECRET_PATTERN.fullmatch(token):
            raise AuthenticationFailed(BAD_KEY)
        digest = hash_token(token.decode("ascii"))
        keys = ApiKey.objects.select_related("account", "user")
        key = keys.filter(digest=digest).first()
        release_connection()
        now = timezone.now()
        if key is None:
            raise AuthenticationFailed(BAD_KEY)
        if not key.is_usable(now):
            raise AuthenticationFailed(why_unusable(key, now))
        last_used.note(key.pk, now)
        return key.user, key


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
    """Return the secret a request carries, by either header; None if it carries none."""
    words = get_authorization_header(request).split()
    if not words:
        bare: str | None = request.META.get("HTTP_X_API_KEY")
        return None if bare is None else bare.strip().encode("utf-8", "replace")
    if len(words) != 2 or words[0].lower() != b"bearer":
        raise AuthenticationFailed(BAD_KEY)
    return words[1]
