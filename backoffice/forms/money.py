"""Forms that post money to a wallet and set the limit of a cap."""

import re
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from django import forms
from django.conf import settings
from django.contrib import admin
from django.contrib.admin.widgets import AdminTextInputWidget, AutocompleteSelect

from accounts.models import Account, ApiKey
from backoffice.forms.fields import amount_field
from billing.amounts import read_amount
from billing.models import Budget, Entry
from billing.money import MAX_LIMIT, from_units, to_units

if TYPE_CHECKING:
    _ModelForm = forms.ModelForm[Budget]
else:
    _ModelForm = forms.ModelForm


class CreditForm(forms.Form):
    """Money into an account's wallet, or out of it."""

    amount = amount_field(help_text="A negative amount takes money out.")
    kind = forms.ChoiceField(choices=Entry.Kind.choices)
    reason = forms.CharField(
        max_length=200,
        widget=AdminTextInputWidget,
        help_text="Kept with the entry for good. Example: 'Invoice 2026-017'.",
    )
    reference = forms.CharField(
        max_length=100,
        required=False,
        widget=AdminTextInputWidget,
        help_text="The id of the payment. A reference is posted only once. A top-up needs one.",
    )
    below_zero = forms.BooleanField(
        required=False,
        label="Let the balance fall below zero",
        help_text="Requests are then rejected until credit is added.",
    )
    # The newest entry when the form was shown: submitted twice, it must not pay twice.
    after = forms.IntegerField(widget=forms.HiddenInput)
    open_wallet = forms.BooleanField(
        label="Make this account prepaid",
        help_text="The account is postpaid: it has no wallet. Credit creates one, and from then on "
        "it limits spending.",
    )

    def __init__(self, *args: Any, balance: Decimal | None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.balance = balance
        self.fields["amount"].label = f"Amount in {settings.CURRENCY}"
        if balance is not None:
            del self.fields["open_wallet"]

    def clean_amount(self) -> Decimal:
        try:
            amount = read_amount(self.cleaned_data["amount"], settings.CURRENCY)
        except ValueError as error:
            raise forms.ValidationError(str(error)) from None
        if not amount:
            raise forms.ValidationError("Enter an amount other than zero.")
        return amount

    def clean(self) -> None:
        cleaned = self.cleaned_data
        if cleaned.get("kind") == Entry.Kind.TOP_UP and cleaned.get("reference") == "":
            self.add_error("reference", "A top-up needs the reference of its payment.")
        amount = cleaned.get("amount")
        if amount is None or amount > 0 or cleaned.get("below_zero"):
            return
        balance = (self.balance or Decimal(0)) + amount
        if balance < 0:
            text = f"The balance would be {balance:f} {settings.CURRENCY}."
            self.add_error("below_zero", f"{text} Tick the box if you mean it.")

    def arguments(self) -> dict[str, Any]:
        """Return the arguments of `ledger.post`."""
        cleaned = self.cleaned_data
        names = ("amount", "reason", "reference")
        return {"kind": Entry.Kind(cleaned["kind"]), **{name: cleaned[name] for name in names}}


# --- Caps -----------------------------------------------------------------------------------------


def read_limit(text: str, unit: str) -> int:
    """Return a limit in smallest units or tokens; raise ValidationError."""
    if unit == Budget.Unit.TOKENS:
        if not re.fullmatch(r"[0-9]{1,18}", text):
            raise forms.ValidationError("Enter a whole number of tokens, such as 100000.")
        return int(text)
    try:
        units = to_units(text)
    except ValueError as error:
        raise forms.ValidationError(str(error)) from None
    if not 0 <= units <= MAX_LIMIT:
        most = f"{from_units(MAX_LIMIT):,f}"
        raise forms.ValidationError(f"Enter a limit from 0 to {most}.")
    return units


class CapForm(forms.Form):
    """A monthly limit for an account, or for one of its keys."""

    account = forms.ModelChoiceField(
        Account.objects.all(),
        widget=AutocompleteSelect(Budget._meta.get_field("account"), admin.site),
    )
    key = forms.ModelChoiceField(
        ApiKey.objects.all(),
        required=False,
        widget=AutocompleteSelect(Budget._meta.get_field("key"), admin.site),
        help_text="Empty: the cap limits all keys of the account together.",
    )
    unit = forms.ChoiceField(
        choices=[("money", f"Money ({settings.CURRENCY}) a month"), ("tokens", "Tokens a month")]
    )
    limit = amount_field()

    def clean(self) -> None:
        cleaned = self.cleaned_data
        if self.errors:
            return
        account, key = cleaned["account"], cleaned["key"]
        if key is not None and key.account_id != account.pk:
            raise forms.ValidationError("This key belongs to another account.")
        same = Budget.objects.filter(account=account, key=key, unit=cleaned["unit"])
        if same.filter(window=Budget.Window.MONTH).exists():
            raise forms.ValidationError("This cap exists already. Change its limit instead.")
        cleaned["limit"] = read_limit(cleaned["limit"], cleaned["unit"])


class LimitForm(_ModelForm):
    """A new limit for an existing cap."""

    new_limit = amount_field()

    class Meta:
        model = Budget
        fields: list[str] = []

    def clean_new_limit(self) -> int:
        return read_limit(self.cleaned_data["new_limit"], self.instance.unit)
