"""Who did something, as it stays in the books."""

import os
import pwd

from django.contrib.auth.models import User


def name_of(user: User | None) -> str:
    """Return an operator's name; without one it was a command, so the system's user who ran it."""
    return f"command ({_system_user()})" if user is None else user.get_username()


def _system_user() -> str:
    # Not from the environment, where anybody can write another name.
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return f"uid {os.getuid()}"  # As in a container.
