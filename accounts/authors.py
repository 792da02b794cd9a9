"""Who did something, as it stays in the books; so whoever did something is never deleted."""

import os
import pwd
from typing import Any

from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import User
from django.db.models import ProtectedError

KEPT = (
    "{user} has acted here, and is not deleted: what they did would be lost. Take away "
    "'active' instead; that ends their logins and their keys."
)


def name_of(user: User | None) -> str:
    """Return an operator's name; without one it was a command, so the system's user who ran it."""
    return f"command ({_system_user()})" if user is None else user.get_username()


def _system_user() -> str:
    # Not from the environment, where anybody can write another name.
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return f"uid {os.getuid()}"  # As in a container.


def has_acted(user: User) -> bool:
    """Tell whether the admin's log names a user. It would be deleted with them; rows that protect
    their author refuse that themselves."""
    return LogEntry.objects.filter(user=user).exists()


def refuse_deletion(instance: User, **_signal: Any) -> None:
    """Raise ProtectedError before a user is deleted who has acted, whoever deletes them."""
    if has_acted(instance):
        raise ProtectedError(KEPT.format(user=instance), {instance})
