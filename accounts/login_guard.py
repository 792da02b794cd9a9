"""How often a name may be guessed at: counted in the database, for all processes together.

A name is counted from each address, and with more patience from everywhere; an address is counted
over all names, since each look at a password costs a third of a second of a core. Whoever is made
to wait is told so before any password is looked at: names that nobody has are counted all the same.
An address that a name has logged in from is not made to wait for what others do, be it elsewhere or
behind the same address.
"""

import logging
from datetime import datetime, timedelta

from django.db import transaction
from django.utils import timezone
from django.utils.crypto import salted_hmac

from accounts.models import LoginCount

logger = logging.getLogger(__name__)

# Wrong passwords for a name before it has to wait: from one address, and from all.
FREE, FREE_FROM_ANYWHERE = 5, 50
# Attempts of one address, for whatever names, before it has to wait.
FREE_OF_ADDRESS = 30
# Each further one waits twice as long as the one before, up to this.
LONGEST = timedelta(minutes=15)
# A count is forgotten when nobody tried for this long; an older one too when there are too many.
KEPT, MOST_ROWS = timedelta(days=1), 10_000


def check_attempt(name: str, address: str) -> timedelta | None:
    """Count an attempt to log in; or return how long it has to wait, and count nothing.

    Counted before the password is looked at: of many at once, no more than are free get that far.
    """
    now = timezone.now()
    _forget(now)
    with transaction.atomic():
        here, anywhere = _locked(now, name, address), _locked(now, name)
        crowd = _locked(now, "", address)
        counts = [here] if here.known else [here, anywhere, crowd]
        until = max(count.wait_until for count in counts)
        if until > now:
            return until - now
        _count(here, FREE, now)
        _count(anywhere, FREE_FROM_ANYWHERE, now)
        _count(crowd, FREE_OF_ADDRESS, now)
    if max(here.wait_until, crowd.wait_until) > now:
        logger.warning("Logins from %s have to wait: too many wrong passwords.", address)
    return None


@transaction.atomic
def reset(name: str, address: str) -> None:
    """Take an attempt back: its password was right."""
    now = timezone.now()
    here, anywhere = _locked(now, name, address), _locked(now, name)
    crowd = _locked(now, "", address)
    here.known, here.wrong, here.wait_until = True, 0, now
    anywhere.wrong -= 1
    crowd.wrong -= 1
    for count in (here, anywhere, crowd):
        count.save()


def _locked(now: datetime, *whose: str) -> LoginCount:
    """Return a name's count, locked. Hashed: people type passwords where the name belongs."""
    digest = salted_hmac("accounts.login_guard", "\n".join(whose), algorithm="sha256").hexdigest()
    fresh = {"wait_until": now, "last_at": now}
    return LoginCount.objects.select_for_update().get_or_create(whose=digest, defaults=fresh)[0]


def _count(count: LoginCount, free: int, now: datetime) -> None:
    count.wrong += 1
    if count.wrong > free:
        count.wait_until = now + min(timedelta(seconds=2 ** min(count.wrong - free, 20)), LONGEST)
    count.last_at = now
    count.save()


@transaction.atomic
def _forget(now: datetime) -> None:
    """Keep the table small, however many names are tried."""
    strangers = LoginCount.objects.filter(known=False)
    newest = strangers.order_by("-last_at").values_list("last_at", flat=True)
    too_many = newest[MOST_ROWS : MOST_ROWS + 1]
    old = strangers.filter(last_at__lte=max([now - KEPT, *too_many]))
    # What is locked is in use: waiting for it here could be waiting in a circle.
    stale = old.select_for_update(skip_locked=True).values_list("pk", flat=True)[:1000]
    LoginCount.objects.filter(pk__in=list(stale)).delete()
