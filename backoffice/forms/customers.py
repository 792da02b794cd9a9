"""Forms that create an account and issue a key."""

import re
from datetime import timedelta
from typing import Any
from uuid import uuid4

from django import forms
from django.contrib import admin
from django.contrib.admin.widgets import AdminTextInputWidget, AutocompleteSelect
from django.contrib.auth.models import User

from accounts import customers
from accounts.models import CUSTOMER_SCOPES, Account, ApiKey, Membership, Scope
from accounts.names import refuse_unseen
from gateway.names import InvalidName, canonical

NEVER = "never"
LIFETIMES = [
    ("30", "in 30 days"),
    ("90", "in 90 days"),
    ("365", "in one year"),
    (NEVER, "never"),
]


class AccountForm(forms.Form):
    """A new account and its owner, who is an existing user or a new one."""

    name = forms.CharField(
        max_length=100,
        validators=[refuse_unseen],
        widget=AdminTextInputWidget,
        help_text="The customer's name. It is unique.",
    )
    user = forms.ModelChoiceField(
        User.objects.all(),
        required=False,
        label="Owner",
        widget=AutocompleteSelect(Membership._meta.get_field("user"), admin.site),
        help_text="An existing user. To create a user, leave this empty and fill in the next two.",
    )
    username = forms.CharField(
        max_length=150,
        required=False,
        label="New owner's username",
        validators=[User.username_validator],
        widget=AdminTextInputWidget,
        help_text="The user cannot log in until you set a password.",
    )
    email = forms.EmailField(
        required=False, label="New owner's email", widget=forms.EmailInput({"size": 40})
    )
    postpaid = forms.BooleanField(
        required=False, help_text="The account has no wallet: spending is not limited by credit."
    )

    def clean_name(self) -> str:
        name: str = self.cleaned_data["name"]
        try:
            customers.require_free_name(name)
        except customers.NameTaken as error:
            raise forms.ValidationError(str(error)) from None
        return name

    def clean_username(self) -> str:
        username: str = User.normalize_username(self.cleaned_data["username"])
        if username and User.objects.filter(username=username).exists():
            raise forms.ValidationError("This user exists. Choose the user as the owner above.")
        return username

    def clean(self) -> None:
        given = [self.cleaned_data.get(name) for name in ("user", "username")]
        if not self.errors and sum(map(bool, given)) != 1:
            raise forms.ValidationError(
                "Choose an owner or enter a new owner's username, not both."
            )

    def create_account(self) -> Account:
        """Create the account, and its owner if that is a new user; raise ValueError."""
        owner: User | None = self.cleaned_data["user"]
        if owner is None:
            owner = customers.create_owner(
                self.cleaned_data["username"], self.cleaned_data["email"]
            )
        return customers.create(self.cleaned_data["name"], owner=owner)


class IssueKeyForm(forms.Form):
    """What a new key may do, and for how long."""

    name = forms.CharField(
        max_length=100,
        validators=[refuse_unseen],
        widget=AdminTextInputWidget,
        help_text="What the key is for, such as 'laptop' or 'nightly job'.",
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
    # Identifies this form: submitted twice, it must not issue two keys.
    form_nonce = forms.UUIDField(widget=forms.HiddenInput, initial=uuid4)

    def __init__(self, *args: Any, may_grant_models: bool = False, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if not may_grant_models:
            scopes: Any = self.fields["scopes"]
            scopes.choices = [choice for choice in Scope.choices if choice[0] in CUSTOMER_SCOPES]

    def clean_allowed_models(self) -> list[str]:
        """Return canonical names. An invalid name would match no model, or every model."""
        names = [name for name in re.split(r"[,\s]+", self.cleaned_data["allowed_models"]) if name]
        try:
            return [canonical(name) for name in names]
        except InvalidName as error:
            raise forms.ValidationError(f"One of the names is wrong: {error}.") from None

    def arguments(self) -> dict[str, Any]:
        """Return the arguments of `keys.issue`."""
        cleaned = self.cleaned_data
        days = cleaned["expires"]
        return {
            "name": cleaned["name"],
            "scopes": cleaned["scopes"],
            "allowed_models": cleaned["allowed_models"],
            "expires_in": None if days == NEVER else timedelta(days=int(days)),
            "form_nonce": cleaned["form_nonce"],
        }

    def key_issued_before(self) -> ApiKey:
        """Return the key that was issued when this form was submitted the first time."""
        key: ApiKey = ApiKey.objects.get(form_nonce=self.cleaned_data["form_nonce"])
        return key
