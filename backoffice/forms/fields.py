"""Form fields that several forms share."""

from django import forms


def amount_field(**options: object) -> forms.CharField:
    """Return a field for a number as text: a DecimalField would round or reject some spellings."""
    widget = forms.TextInput({"size": 20, "autocomplete": "off"})
    return forms.CharField(max_length=30, widget=widget, **options)  # type: ignore[arg-type]
