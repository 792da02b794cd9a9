"""The form that schedules a price."""

from django import forms
from django.contrib.admin.widgets import AdminSplitDateTime, AdminTextInputWidget
from django.utils import timezone

from backoffice.forms.fields import amount_field
from billing import price_book, pricing


class PriceForm(forms.Form):
    """A version of a model's price that starts now or later."""

    model = forms.CharField(
        max_length=512,
        widget=AdminTextInputWidget,
        help_text="In any spelling: llama3, LLAMA3:latest, hf.co/user/repo:q4_0.",
    )
    input_per_1k = amount_field(
        label="Input, per 1K tokens",
        help_text=f"For prompt tokens. At most {pricing.price_decimals()} decimals.",
    )
    output_per_1k = amount_field(
        label="Output, per 1K tokens",
        required=False,
        help_text="For completion tokens. Empty: the same as input.",
    )
    effective_from = forms.SplitDateTimeField(
        required=False,
        widget=AdminSplitDateTime,
        help_text="In UTC. Empty: now. Earlier requests keep the price they had.",
    )
    unusual = forms.BooleanField(
        required=False,
        label="Accept an unusual price",
        help_text=f"Only needed for a price {price_book.UNUSUAL} times the usual one or more.",
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
        if warning := price_book.unusual_price_warning(self.line(), timezone.now()):
            self.add_error("unusual", f"{warning} Tick the box if you mean it.")

    def line(self) -> price_book.PriceLine:
        cleaned = self.cleaned_data
        return price_book.read_line(
            cleaned["model"], cleaned["input_per_1k"], cleaned["output_per_1k"]
        )

    def _price(self, name: str) -> str:
        text: str = self.cleaned_data[name]
        self._read("llama3", text)
        return text

    def _read(self, model: str, price: str) -> price_book.PriceLine:
        try:
            return price_book.read_line(model, price)
        except pricing.InvalidPrice as error:
            raise forms.ValidationError(str(error)) from None
