"""The rows that say who put money into a wallet or took it out; for `ledger.post` alone."""

from decimal import Decimal

from django.contrib.auth.models import User
from django.db import IntegrityError, transaction
from django.db.models import F, Value

from accounts import authors
from accounts.models import Account
from billing.models import Budget, Entry
from billing.money import MAX_LIMIT, MAX_UNITS, from_units

# How far below zero a wallet's limit may be taken: with MAX_LIMIT spent, what is left fits 64 bits.
DEEPEST = MAX_LIMIT - MAX_UNITS


def fill(wallet: Budget, units: int) -> None:
    """Change what a wallet was given in all; raise ValueError if that leaves what it can count."""
    least, most = max(DEEPEST - units, -MAX_UNITS), min(MAX_LIMIT - units, MAX_UNITS)
    fits = Budget.objects.filter(pk=wallet.pk, limit__range=(least, most))
    if fits.update(limit=F("limit") + Value(units)) != 1:
        bound = from_units(MAX_LIMIT if units > 0 else DEEPEST)
        raise ValueError(f"That is too much: what a wallet was given ends at {bound:,f}.")


def insert(
    account: Account,
    amount: Decimal,
    *,
    kind: Entry.Kind,
    reason: str,
    reference: str,
    by: User | None,
) -> Entry:
    """Insert an entry; raise ValueError if its reference was posted before, also just now."""
    try:
        with transaction.atomic():
            return Entry.objects.create(
                account=account,
                kind=kind,
                amount=amount,
                reason=reason,
                reference=reference or None,
                created_by=by,
                author=authors.name_of(by),
            )
    except IntegrityError:
        same = Entry.objects.filter(reference=reference).select_related("account").first()
        if same is None:
            raise
        raise ValueError(
            f"The reference '{same.reference}' was posted before: {same.amount:f} to "
            f"{same.account} on {same.created_at:%Y-%m-%d}. Nothing is posted now."
        ) from None
