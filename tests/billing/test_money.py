"""Amounts are exact in Python and in both databases."""

from decimal import Decimal
from typing import Any

import pytest
from django.core.exceptions import ValidationError
from django.db import transaction
from django.db.models import F, Sum
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from billing.models import Entry
from billing.money import MAX_UNITS, MoneyField, from_units, to_units
from tests.harness.callers import Caller

UNITS = st.integers(-MAX_UNITS, MAX_UNITS)
AMOUNTS = [
    ("0", 0),
    ("-0", 0),
    ("1", 10**12),
    ("0.002", 2 * 10**9),
    ("0.000000000001", 1),
    ("-0.5", -5 * 10**11),
    (" 25 ", 25 * 10**12),
    ("1.10", 11 * 10**11),
    ("007", 7 * 10**12),
    ("9223372.036854775807", MAX_UNITS),
    ("-9223372.036854775807", -MAX_UNITS),
    (25, 25 * 10**12),
    (Decimal("1E+3"), 1000 * 10**12),
    (Decimal("1E-12"), 1),
    (Decimal("0.1000"), 10**11),
]

NO_AMOUNTS: list[Any] = [
    *["", " ", "-", ".", "1.", ".5", "+1", "--1", "1,5", "1 000", "1e3", "1E-3", "0x10", "1_000"],
    *["NaN", "-NaN", "sNaN", "Infinity", "-inf", "٣", "½", "1\n2", "$5", "None", "True"],
    *["0.0000000000001", "9223372.036854775808", "-9223372.036854775808", "9" * 13, "9" * 5000],
    *[Decimal("NaN"), Decimal("Infinity"), Decimal("1E-13"), Decimal("1E+13"), 10**7, True, None],
]


@pytest.mark.parametrize(("amount", "units"), AMOUNTS)
def test_an_amount_is_a_whole_number_of_units(amount: Any, units: int) -> None:
    assert to_units(amount) == units


@pytest.mark.parametrize("amount", NO_AMOUNTS, ids=lambda amount: repr(amount)[:20])
def test_an_inexact_amount_is_rejected(amount: Any) -> None:
    with pytest.raises(ValueError, match=r"amount|large"):
        to_units(amount)


@pytest.mark.parametrize(
    ("units", "shown"),
    [(0, "0"), (1, "0.000000000001"), (10**12, "1"), (25 * 10**13, "250"), (-15 * 10**11, "-1.5")],
)
def test_an_amount_is_shown_without_trailing_zeros_or_exponent(units: int, shown: str) -> None:
    assert f"{from_units(units):f}" == shown


@examples(deadline=None)
@given(UNITS)
def test_units_to_amount_and_back_is_the_same(units: int) -> None:
    assert to_units(from_units(units)) == units
    assert to_units(f"{from_units(units):f}") == units


@examples(deadline=None)
@given(st.integers(0, 9_223_371), st.integers(0, 10**12 - 1), st.integers(0, 12))
def test_text_to_units_and_back_is_the_same(whole: int, decimals: int, places: int) -> None:
    text = f"{whole}.{decimals:012}"[: len(str(whole)) + 1 + places].rstrip(".")

    assert from_units(to_units(text)) == Decimal(text)


@examples(deadline=None)
@given(UNITS, UNITS)
def test_units_and_amounts_have_the_same_order(one: int, other: int) -> None:
    assert (one < other) == (from_units(one) < from_units(other))


@examples(deadline=None)
@given(st.text(max_size=30) | st.text("0123456789.-+eE _,", max_size=20))
def test_no_text_is_read_as_anything_but_its_exact_value(text: str) -> None:
    try:
        units = to_units(text)
    except ValueError:
        return
    assert from_units(units) == Decimal(text.strip())


# --- In the database ------------------------------------------------------------------------------


def entry(caller: Caller, amount: Any) -> Entry:
    return Entry.objects.create(account=caller.account, kind="grant", amount=amount, reason="test")


@pytest.mark.parametrize("amount", ["0.000000000001", "-9223372.036854775807", "0.1", "12"])
def test_an_amount_is_stored_exactly(charlie: Caller, amount: str) -> None:
    row = Entry.objects.get(pk=entry(charlie, amount).pk)

    assert isinstance(row.amount, Decimal) and row.amount == Decimal(amount)


def test_a_sum_of_ten_tenths_is_one(charlie: Caller) -> None:
    rows = [entry(charlie, Decimal("0.1")).pk for _ in range(10)]
    entries = Entry.objects.filter(pk__in=rows)

    assert entries.aggregate(sum=Sum("amount"))["sum"] == 1


def test_amounts_can_be_compared_in_queries(charlie: Caller) -> None:
    row = entry(charlie, Decimal("0.000000000002"))
    entries = Entry.objects.filter(pk=row.pk)

    exactly: dict[str, Any] = {"amount": Decimal("0.000000000002")}  # The stubs expect an integer.
    assert entries.filter(**exactly).exists()
    assert entries.filter(amount__gt="0.000000000001", amount__lt=1).exists()
    assert entries.annotate(same=F("amount")).get().same == row.amount


@pytest.mark.parametrize("amount", ["1e3", "NaN", Decimal("1E-13"), 0.1 + 0.2, "9223373"])
def test_an_inexact_amount_is_not_stored(charlie: Caller, amount: Any) -> None:
    before = Entry.objects.count()
    with pytest.raises(ValueError, match=r"amount|large"), transaction.atomic():
        entry(charlie, amount)
    assert Entry.objects.count() == before


def test_a_form_field_accepts_up_to_twelve_decimals() -> None:
    field = MoneyField().formfield()
    assert field is not None
    assert field.clean("0.000000000001") == Decimal("0.000000000001")
    with pytest.raises(ValidationError):
        field.clean("0.0000000000001")
