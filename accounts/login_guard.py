"""Limit login attempts. They are counted in the database, for all processes together.

There is a count for a username from one address, a higher limit for a username from all addresses,
and a count for an address over all usernames, because each password check takes a third of a second
of CPU. A locked-out attempt is rejected before the password is checked. Unknown usernames are
counted too, so the response does not reveal which ones exist. Attempts from an address from which
the user has logged in before are limited by the first count alone: attempts elsewhere, or by others
behind the same address, do not lock the user out.
"""

import logging
from datetime import datetime, timedelta

from django.db import transaction
from django.utils import timezone
from django.utils.crypto import salted_hmac

from accounts.models import LoginCount

logger = logging.getLogger(__name__)

# Wrong passwords for a username before a wait: from one address, and from all addresses.
FREE, FREE_FROM_ANYWHERE = 5, 50
# Wrong passwords from one address, for any usernames, before a wait.
FREE_OF_ADDRESS = 30
# Each further wrong password doubles the wait, up to this.
LONGEST_WAIT = timedelta(minutes=15)
# Counts without an attempt for this long are deleted; the oldest ones also when there are too many.
KEPT, MOST_ROWS = timedelta(days=1), 10_000


def check_attempt(name: str, address: str) -> timedelta | None:
    """Count an attempt to log in and return None, or return how long the user has to wait.

    An attempt is counted before its password is checked, so concurrent attempts cannot pass the
    limit.
    """
    now = timezone.now()
    _delete_old(now)
    with transaction.atomic():
        here, anywhere = _locked(now, name, address), _locked(now, name)
        from_address = _locked(now, "", address)
        counts = [here] if here.known else [here, anywhere, from_address]
        until = max(count.wait_until for count in counts)
        if until > now:
            return until - now
        _count(here, FREE, now)
        _count(anywhere, FREE_FROM_ANYWHERE, now)
        _count(from_address, FREE_OF_ADDRESS, now)
    if max(here.wait_until, from_address.wait_until) > now:
        logger.warning("Logins from %s have to wait: too many wrong passwords.", address)
    return None


@transaction.atomic
def reset(name: str, address: str) -> None:
    """Undo the count of an attempt whose password was right."""
    now = timezone.now()
    here, anywhere = _locked(now, name, address), _locked(now, name)
    from_address = _locked(now, "", address)
    here.known, here.wrong, here.wait_until = True, 0, now
    anywhere.wrong -= 1
    from_address.wrong -= 1
    for count in (here, anywhere, from_address):
        count.save()


def _locked(now: datetime, *whose: str) -> LoginCount:
    """Return a count, locked. The name is hashed: people type passwords in the wrong field."""
    digest = salted_hmac("accounts.login_guard", "\n".join(whose), algorithm="sha256").hexdigest()
    defaults = {"wait_until": now, "last_at": now}
    return LoginCount.objects.select_for_update().get_or_create(whose=digest, defaults=defaults)[0]


def _count(count: LoginCount, free: int, now: datetime) -> None:
    count.wrong += 1
    if count.wrong > free:
        count.wait_until = now + min(
            timedelta(seconds=2 ** min(count.wrong - free, 20)), LONGEST_WAIT
        )
    count.last_at = now
    count.save()


@transaction.atomic
def _delete_old(now: datetime) -> None:
    """Keep the table small, however many usernames are tried."""
    unknown = LoginCount.objects.filter(known=False)
    newest = unknown.order_by("-last_at").values_list("last_at", flat=True)
    too_many = newest[MOST_ROWS : MOST_ROWS + 1]
    old = unknown.filter(last_at__lte=max([now - KEPT, *too_many]))
    # A locked row is in use. Waiting for it here could deadlock.
    stale = old.select_for_update(skip_locked=True).values_list("pk", flat=True)[:1000]
    LoginCount.objects.filter(pk__in=list(stale)).delete()
