"""The login form of the admin, with limited attempts."""

import math
from datetime import timedelta
from typing import Any

from django import forms
from django.conf import settings
from django.contrib.admin.forms import AdminAuthenticationForm
from django.http import HttpRequest

from accounts import login_guard


class LoginForm(AdminAuthenticationForm):
    """Checks a password only if `login_guard` allows another attempt."""

    def clean(self) -> dict[str, Any]:
        name = self.cleaned_data.get("username")
        if name is None or self.request is None or not self.cleaned_data.get("password"):
            return super().clean()
        address = client_address(self.request)
        if wait := login_guard.check_attempt(name, address):
            raise forms.ValidationError(
                f"Too many attempts. Wait {duration(wait)}, then try again."
            )
        cleaned = super().clean()
        login_guard.reset(name, address)
        return cleaned


def client_address(request: HttpRequest) -> str:
    """Return the address that a request comes from.

    Behind our proxy it is the last address in X-Forwarded-For, which the proxy added. The client
    may have written the addresses before it.
    """
    peer: str = request.META.get("REMOTE_ADDR", "")
    if not settings.BEHIND_TLS_PROXY:
        return peer
    forwarded: str = request.META.get("HTTP_X_FORWARDED_FOR", "")
    return forwarded.rpartition(",")[2].strip()[:64] or peer


def duration(wait: timedelta) -> str:
    seconds = math.ceil(wait.total_seconds())
    return f"{seconds} seconds" if seconds < 120 else f"{math.ceil(seconds / 60)} minutes"
