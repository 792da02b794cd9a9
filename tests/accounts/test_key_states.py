"""One rule decides whether a key is accepted: for one key, for many, and for the admin's list."""

from datetime import UTC, datetime, timedelta
from itertools import product
from typing import Any

import pytest

from accounts.models import Account, ApiKey
from tests.harness.callers import Caller

NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)
REVOKED = [None, NOW]
EXPIRIES = [None, NOW - timedelta(seconds=1), NOW, NOW + timedelta(seconds=1)]


@pytest.mark.parametrize(
    ("revoked_at", "expiry", "status"),
    list(product(REVOKED, EXPIRIES, Account.Status.values)),
    ids=str,
)
def test_the_key_the_query_and_the_state_agree(
    alice: Caller, revoked_at: Any, expiry: Any, status: str
) -> None:
    Account.objects.filter(pk=alice.account.pk).update(status=status)
    ApiKey.objects.filter(pk=alice.key.pk).update(revoked_at=revoked_at, expiry=expiry)

    [key] = ApiKey.objects.with_state(NOW)

    usable = key.is_usable(NOW)
    assert usable == ApiKey.objects.usable(NOW).exists() == (key.state == ApiKey.State.VALID)
    # A key is accepted until the moment it expires, exclusive.
    assert usable == (revoked_at is None and expiry in (None, EXPIRIES[-1]) and status == "active")


def test_a_key_that_ended_is_not_called_suspended(alice: Caller) -> None:
    Account.objects.filter(pk=alice.account.pk).update(status="suspended")
    ApiKey.objects.filter(pk=alice.key.pk).update(expiry=NOW)

    assert ApiKey.objects.with_state(NOW).get().state == ApiKey.State.EXPIRED
