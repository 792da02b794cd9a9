"""The names of authors in permanent records. A user who is an author cannot be deleted."""

import os
import pwd
from typing import Any

from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import User
from django.db.models import ProtectedError

USER_IS_KEPT = (
    "{user} is named in the admin's history and cannot be deleted. Deactivate the user instead: "
    "that blocks the login. Keys stay valid until you revoke them."
)


def name_of(user: User | None) -> str:
    """Return an operator's username. Without an operator it was a command: name its system user."""
    return f"command ({_system_user()})" if user is None else user.get_username()


def _system_user() -> str:
    # The environment could contain any name.
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return f"uid {os.getuid()}"  # Containers often have no name for it.


def has_acted(user: User) -> bool:
    """Return whether the admin's log names a user: Django would delete the log with the user. Other
    tables protect their author themselves."""
    return LogEntry.objects.filter(user=user).exists()


def refuse_deletion(instance: User, **_signal: Any) -> None:
    """Raise ProtectedError before a user is deleted who is named in the log."""
    if has_acted(instance):
        raise ProtectedError(USER_IS_KEPT.format(user=instance), {instance})
