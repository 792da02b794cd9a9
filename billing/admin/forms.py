"""What an operator fills in to post money, to price a model or to set a cap."""

import re
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from django import forms
from django.conf import settings
from django.contrib import admin
from django.contrib.admin.widgets import (
    AdminSplitDateTime,
    AdminTextInputWidget,
    AutocompleteSelect,
)
from django.utils import timezone

from accounts.forms import AccountForm, IssueKeyForm
from accounts.models import Account, ApiKey
from billing import price_book, pricing
from billing.amounts import read_amount
from billing.models import Budget, Entry
from billing.money import MAX_LIMIT, from_units, to_units
from gateway.names import InvalidName, canonical

if TYPE_CHECKING:
    _ModelForm = forms.ModelForm[Budget]
else:
    _ModelForm = forms.ModelForm

SHORT = {"size": 20, "autocomplete": "off"}


def amount_field(**options: Any) -> forms.CharField:
    return forms.CharField(max_length=30, widget=forms.TextInput(SHORT), **options)


class PaidAccountForm(AccountForm):
    postpaid = forms.BooleanField(
        required=False, help_text="No wallet: spending is not limited by credit."
    )


class IssueCheckedKeyForm(IssueKeyForm):
    def clean_allowed_models(self) -> list[str]:
        """Return canonical names: one that names no model would allow nothing, or everything."""
        try:
            return [canonical(name) for name in super().clean_allowed_models()]
        except InvalidName as error:
            raise forms.ValidationError(f"One of these: {error}.") from None


class CreditForm(forms.Form):
    """Money into an account's wallet, or out of it."""

    amount = amount_field(help_text="Negative takes money out.")
    kind = forms.ChoiceField(choices=Entry.Kind.choices)
    reason = forms.CharField(
        max_length=200,
        widget=AdminTextInputWidget,
        help_text="Stays in the books for ever, such as 'Invoice 2026-017'.",
    )
    reference = forms.CharField(
        max_length=100,
        required=False,
        widget=AdminTextInputWidget,
        help_text="Of the payment, such as its id: it is posted once only. A top-up needs one.",
    )
    below_zero = forms.BooleanField(
        required=False,
        label="Let the balance fall below zero",
        help_text="Requests are refused then, until credit is added.",
    )
    # The newest entry when the form was shown: sent twice, it must not pay twice.
    after = forms.IntegerField(widget=forms.HiddenInput)
    open_wallet = forms.BooleanField(
        label="Make this account prepaid",
        help_text="It is postpaid: it has no wallet. Credit opens one, and then limits spending.",
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
            raise forms.ValidationError("Zero moves no money.")
        return amount

    def clean(self) -> None:
        said = self.cleaned_data
        if said.get("kind") == Entry.Kind.TOP_UP and said.get("reference") == "":
            self.add_error("reference", "A top-up needs the reference of its payment.")
        amount = said.get("amount")
        if amount is None or amount > 0 or said.get("below_zero"):
            return
        left = (self.balance or Decimal(0)) + amount
        if left < 0:
            text = f"That would leave {left:f} {settings.CURRENCY}. Tick the box if it is meant."
            self.add_error("below_zero", text)

    def posting(self) -> dict[str, Any]:
        """Return the arguments of `ledger.post`."""
        said = self.cleaned_data
        kind = Entry.Kind(said["kind"])
        return {"kind": kind, **{name: said[name] for name in ("amount", "reason", "reference")}}


class PriceForm(forms.Form):
    """A version of a model's price, from now or from a moment to come."""

    model = forms.CharField(
        max_length=512,
        widget=AdminTextInputWidget,
        help_text="In any spelling: llama3, LLAMA3:latest, hf.co/user/repo:q4_0.",
    )
    input_per_1k = amount_field(
        label="Input, per 1K tokens",
        help_text=f"Tokens read. At most {pricing.price_decimals()} decimals.",
    )
    output_per_1k = amount_field(
        label="Output, per 1K tokens", required=False, help_text="Tokens written. Empty: as input."
    )
    effective_from = forms.SplitDateTimeField(
        required=False,
        widget=AdminSplitDateTime,
        help_text="In UTC. Empty: now. What was used before keeps the price it had.",
    )
    unusual = forms.BooleanField(
        required=False,
        label="This price is meant",
        help_text=f"Only for one that is {price_book.UNUSUAL} times the usual or more.",
    )

    def clean_model(self) -> str:
        return self._read(self.cleaned_data["model"], "0").model

    def clean_input_per_1k(self) -> str:
        return self._price("input_per_1k")

    def clean_output_per_1k(self) -> str:
        return self._price("output_per_1k") if self.cleaned_data["output_per_1k"] else ""

    def clean(self) -> None:
        if self.errors or self.cleaned_data.get("unusual"):
            return
        if doubt := price_book.unusual_price_warning(self.line(), timezone.now()):
            self.add_error("unusual", f"{doubt} Tick the box if it is meant.")

    def line(self) -> price_book.PriceLine:
        said = self.cleaned_data
        return price_book.read_line(said["model"], said["input_per_1k"], said["output_per_1k"])

    def _price(self, name: str) -> str:
        text: str = self.cleaned_data[name]
        self._read("llama3", text)
        return text

    def _read(self, model: str, price: str) -> price_book.PriceLine:
        try:
            return price_book.read_line(model, price)
        except pricing.InvalidPrice as error:
            raise forms.ValidationError(str(error)) from None


# --- Caps ---------------------------------------------------------------------------------------


def read_limit(text: str, unit: str) -> int:
    """Return a limit in smallest units or tokens; raise ValidationError."""
    if unit == Budget.Unit.TOKENS:
        if not re.fullmatch(r"[0-9]{1,18}", text):
            raise forms.ValidationError("Tokens are counted in whole numbers, such as 100000.")
        return int(text)
    try:
        units = to_units(text)
    except ValueError as error:
        raise forms.ValidationError(str(error)) from None
    if not 0 <= units <= MAX_LIMIT:
        most = f"{from_units(MAX_LIMIT):,f}"
        raise forms.ValidationError(f"A limit is from 0 to {most}.")
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
        help_text="Empty: the cap is for all keys of the account together.",
    )
    unit = forms.ChoiceField(
        choices=[("money", f"Money ({settings.CURRENCY}) a month"), ("tokens", "Tokens a month")]
    )
    limit = amount_field()

    def clean(self) -> None:
        said = self.cleaned_data
        if self.errors:
            return
        key: ApiKey | None = said["key"]
        if key is not None and key.account_id != said["account"].pk:
            raise forms.ValidationError("This key belongs to another account.")
        same = Budget.objects.filter(account=said["account"], key=key, unit=said["unit"])
        if same.filter(window=Budget.Window.MONTH).exists():
            raise forms.ValidationError("There is such a cap already; change that one.")
        said["limit"] = read_limit(said["limit"], said["unit"])


class LimitForm(_ModelForm):
    """A new limit for a cap that is there."""

    new_limit = amount_field()

    class Meta:
        model = Budget
        fields: list[str] = []

    def clean_new_limit(self) -> int:
        return read_limit(self.cleaned_data["new_limit"], self.instance.unit)
