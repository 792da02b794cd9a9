"""What a person fills in to log in, to add an account or to issue a key."""

import math
import re
from datetime import timedelta
from typing import Any
from uuid import uuid4

from django import forms
from django.conf import settings
from django.contrib import admin
from django.contrib.admin.forms import AdminAuthenticationForm
from django.contrib.admin.widgets import AdminTextInputWidget, AutocompleteSelect
from django.contrib.auth.models import User
from django.http import HttpRequest

from accounts import login_guard
from accounts.models import CUSTOMER_SCOPES, Account, ApiKey, Membership, Scope
from accounts.names import refuse_unseen

NEVER = "never"
LIFETIMES = [
    ("30", "in 30 days"),
    ("90", "in 90 days"),
    ("365", "in one year"),
    (NEVER, "never"),
]


class LoginForm(AdminAuthenticationForm):
    """The admin's own, which lets a name be guessed at only so often."""

    def clean(self) -> dict[str, Any]:
        name = self.cleaned_data.get("username")
        if name is None or self.request is None or not self.cleaned_data.get("password"):
            return super().clean()
        address = client_address(self.request)
        if wait := login_guard.ask(name, address):
            raise forms.ValidationError(f"Too many attempts. Wait {spelled(wait)}, then try again.")
        cleaned = super().clean()
        login_guard.succeeded(name, address)
        return cleaned


def client_address(request: HttpRequest) -> str:
    """Return the address that a request comes from.

    Behind our proxy: the last one it forwards, which is the one that it saw itself. What stands
    before that a client may have written.
    """
    peer: str = request.META.get("REMOTE_ADDR", "")
    if not settings.BEHIND_TLS_PROXY:
        return peer
    forwarded: str = request.META.get("HTTP_X_FORWARDED_FOR", "")
    return forwarded.rpartition(",")[2].strip()[:64] or peer


def spelled(wait: timedelta) -> str:
    seconds = math.ceil(wait.total_seconds())
    return f"{seconds} seconds" if seconds < 120 else f"{math.ceil(seconds / 60)} minutes"


class AccountForm(forms.Form):
    """A new account and its owner, who is here already or new."""

    name = forms.CharField(
        max_length=100,
        validators=[refuse_unseen],
        widget=AdminTextInputWidget,
        help_text="Of the customer; unique.",
    )
    user = forms.ModelChoiceField(
        User.objects.all(),
        required=False,
        label="Owner",
        widget=AutocompleteSelect(Membership._meta.get_field("user"), admin.site),
        help_text="Somebody who is here already; else name a new user below.",
    )
    username = forms.CharField(
        max_length=150,
        required=False,
        label="New owner's name",
        validators=[User.username_validator],
        widget=AdminTextInputWidget,
        help_text="Cannot log in until a password is set.",
    )
    email = forms.EmailField(
        required=False, label="New owner's address", widget=forms.EmailInput({"size": 40})
    )

    def clean_name(self) -> str:
        name: str = self.cleaned_data["name"]
        if same := Account.objects.filter(name__iexact=name).first():
            raise forms.ValidationError(f"There is an account of this name already: {same}.")
        return name

    def clean_username(self) -> str:
        username: str = User.normalize_username(self.cleaned_data["username"])
        if username and User.objects.filter(username=username).exists():
            raise forms.ValidationError("There is a user of this name; choose them as the owner.")
        return username

    def clean(self) -> None:
        given = [self.cleaned_data.get(name) for name in ("user", "username")]
        if not self.errors and sum(map(bool, given)) != 1:
            raise forms.ValidationError("Choose an owner or name a new one; not both, not neither.")

    def owner(self) -> User:
        """Return the owner, made if new, and then without a password."""
        chosen: User | None = self.cleaned_data["user"]
        if chosen is not None:
            return chosen
        return User.objects.create_user(self.cleaned_data["username"], self.cleaned_data["email"])


class IssueKeyForm(forms.Form):
    """What a new key may do, and for how long."""

    name = forms.CharField(
        max_length=100,
        validators=[refuse_unseen],
        widget=AdminTextInputWidget,
        help_text="What it is for, such as 'laptop' or 'nightly job'.",
    )
    scopes = forms.MultipleChoiceField(
        choices=Scope.choices, initial=CUSTOMER_SCOPES, widget=forms.CheckboxSelectMultiple
    )
    allowed_models = forms.CharField(
        required=False,
        max_length=10_000,
        widget=forms.Textarea({"rows": 3, "cols": 40}),
        help_text="Separated by commas or line breaks. Empty: every model that has a price.",
    )
    expires = forms.ChoiceField(choices=LIFETIMES, initial="90")
    # Of this very form: sent twice, it must not issue two keys.
    form_nonce = forms.UUIDField(widget=forms.HiddenInput, initial=uuid4)

    def __init__(self, *args: Any, controls_models: bool = False, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if not controls_models:
            scopes: Any = self.fields["scopes"]
            scopes.choices = [each for each in Scope.choices if each[0] in CUSTOMER_SCOPES]

    def clean_allowed_models(self) -> list[str]:
        return [name for name in re.split(r"[,\s]+", self.cleaned_data["allowed_models"]) if name]

    def issuing(self) -> dict[str, Any]:
        """Return the arguments of `keys.issue`."""
        said = self.cleaned_data
        days = said["expires"]
        return {
            "name": said["name"],
            "scopes": said["scopes"],
            "allowed_models": said["allowed_models"],
            "expires_in": None if days == NEVER else timedelta(days=int(days)),
            "form_nonce": said["form_nonce"],
        }

    def key_issued_before(self) -> ApiKey:
        """Return the key this form issued when it was sent the first time."""
        key: ApiKey = ApiKey.objects.get(form_nonce=self.cleaned_data["form_nonce"])
        return key
