"""Issue, rename and revoke keys: the writer of ApiKey, with `last_used.py` for one column."""

from collections.abc import Callable, Collection
from datetime import datetime, timedelta
from uuid import UUID

from django.conf import settings
from django.contrib.auth.models import User
from django.db import transaction
from django.utils import timezone
from django.utils.module_loading import import_string

from accounts import authors, customers
from accounts.models import CUSTOMER_SCOPES, Account, ApiKey


@transaction.atomic
def issue(
    account: Account,
    *,
    name: str,
    scopes: list[str] | None = None,
    allowed_models: list[str] | None = None,
    expires_in: timedelta | None = None,
    user: User | None = None,
    form_nonce: UUID | None = None,
    by: User | None = None,
) -> tuple[ApiKey, str]:
    """Create a key and return it with its secret, which is stored nowhere.

    Raises Membership.DoesNotExist if the account has no owner, IntegrityError if the form was
    submitted before.
    """
    key, secret = ApiKey.objects.create(
        user=user or customers.owner_of(account),
        expiry=expires_in,
        account=account,
        name=name,
        scopes=CUSTOMER_SCOPES if scopes is None else scopes,
        allowed_models=allowed_models or [],
        form_nonce=form_nonce,
        issued_by=by,
        author=authors.name_of(by),
    )
    key.last_four = secret[-4:]
    key.save(update_fields=["last_four"])
    return key, secret


def revoke(key_id: int, *, now: datetime | None = None) -> bool:
    """Revoke a key; return False if it was revoked before.

    The next request is rejected. Running responses are cancelled within a second.
    """
    unrevoked = ApiKey.objects.filter(pk=key_id, revoked_at=None)
    revoked: int = unrevoked.update(revoked_at=now or timezone.now())
    return revoked == 1


def usable(key_ids: Collection[int], now: datetime) -> set[int]:
    """Return the ids of those keys that authentication would accept."""
    keys = ApiKey.objects.filter(pk__in=key_ids).usable(now)
    return set(keys.values_list("pk", flat=True))


def not_for_sale(models: Collection[str], now: datetime) -> list[str]:
    """Return those of the models, in any spelling, that have no price. Only billing knows, so
    settings name its function."""
    check: Callable[[Collection[str], datetime], list[str]] = import_string(settings.MODEL_CHECK)
    return check(models, now)


def rename(key_id: int, name: str) -> None:
    """Change a key's name alone: a revocation in the meantime must not be undone."""
    ApiKey.objects.filter(pk=key_id).update(name=name)
