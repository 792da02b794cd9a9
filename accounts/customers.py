"""Create, find, change and suspend customers: the one writer of Account and Membership."""

import re
import secrets
import unicodedata
from collections.abc import Collection, Iterable

from django.contrib.auth.models import User
from django.db import IntegrityError, transaction
from django.db.models import Exists, OuterRef

from accounts.models import Account, Membership
from accounts.names import alike


class NameTaken(ValueError):
    """Another account has this name, in upper or lower case, or another user this username."""


class AccountNotFound(ValueError):
    """No account has this name. The message suggests the closest name."""


@transaction.atomic
def create(name: str, *, owner: User, isolate_prompts: bool | None = None) -> Account:
    """Create an account that a user owns; raise NameTaken."""
    require_free_name(name)
    try:
        with transaction.atomic():
            account = Account.objects.create(name=name, isolate_prompts=isolate_prompts)
    except IntegrityError:
        require_free_name(name)  # Another process created it after the first look.
        raise
    Membership.objects.create(account=account, user=owner, role=Membership.Role.OWNER)
    return account


def require_free_name(name: str) -> None:
    if same := Account.objects.filter(name__iexact=name).first():
        raise NameTaken(f"There is an account of this name already: {same}.")


def create_owner(username: str, email: str = "") -> User:
    """Create a user who cannot log in until an operator sets a password; raise NameTaken."""
    try:
        with transaction.atomic():
            return User.objects.create_user(username, email)
    except IntegrityError:
        raise NameTaken(f"There is a user of this name already: {username}.") from None


def free_username(account_name: str) -> str:
    """Return an unused username, made from an account's name."""
    decomposed = unicodedata.normalize("NFKD", account_name)
    letters = decomposed.encode("ascii", "ignore").decode().lower()
    stem = re.sub(r"[^a-z0-9]+", "-", letters).strip("-")[:100] or "owner"
    taken = User.objects.filter(username=stem).exists()
    return f"{stem}-{secrets.token_hex(3)}" if taken else stem


def find(name: str) -> Account:
    """Return the account with exactly this name; raise AccountNotFound."""
    account = Account.objects.filter(name=name).first()
    if account is not None:
        return account
    if closest := alike(name, Account.objects.values_list("name", flat=True)):
        raise AccountNotFound(f"No account '{name}'. Did you mean '{closest}'?")
    raise AccountNotFound(f"No account '{name}'. Create it: manage.py create_account '{name}'")


def owner_of(account: Account) -> User:
    """Return the account's first owner; raise Membership.DoesNotExist if it has none."""
    owners = Membership.objects.filter(account=account, role=Membership.Role.OWNER)
    return owners.select_related("user").earliest("id").user


def change(account: Account) -> None:
    """Write an account's name and prompt isolation. The status is left alone: another operator may
    have suspended the account since the form was shown."""
    account.save(update_fields=["name", "isolate_prompts"])


@transaction.atomic
def change_members(*, saved: Iterable[Membership], removed: Iterable[Membership]) -> None:
    for membership in removed:
        membership.delete()
    for membership in saved:
        membership.save()


def only_owner_of(user: User) -> Account | None:
    """Return an account that would have no owner without a user."""
    owners = Membership.objects.filter(account=OuterRef("pk"), role=Membership.Role.OWNER)
    owned = Account.objects.filter(Exists(owners.filter(user=user)))
    return owned.exclude(Exists(owners.exclude(user=user))).first()


@transaction.atomic
def delete_user(user: User) -> None:
    """Delete a user and the memberships of the user."""
    Membership.objects.filter(user=user).delete()
    user.delete()


def suspend(account_ids: Collection[int]) -> list[Account]:
    """Refuse the keys of some accounts; return the accounts that were active."""
    return _set_status(account_ids, Account.Status.SUSPENDED)


def activate(account_ids: Collection[int]) -> list[Account]:
    """Accept the keys of some accounts again; return the accounts that were suspended."""
    return _set_status(account_ids, Account.Status.ACTIVE)


@transaction.atomic
def _set_status(account_ids: Collection[int], status: Account.Status) -> list[Account]:
    accounts = Account.objects.filter(pk__in=account_ids).exclude(status=status)
    changed = list(accounts.select_for_update(no_key=True))
    Account.objects.filter(pk__in=[account.pk for account in changed]).update(status=status)
    return changed
