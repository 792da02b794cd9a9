"""Wallets and caps, and the entries that fill wallets."""

from typing import Any

from django.conf import settings
from django.contrib import admin, messages
from django.db import transaction
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.urls import reverse

from accounts.admin.base import (
    BackofficeAdmin,
    Column,
    ReadOnlyAdmin,
    column,
    figure,
    moment,
    operator,
    prefilled,
)
from billing import ledger
from billing.admin.accounts import amounts_of, this_month
from billing.admin.figures import in_unit, money
from billing.admin.forms import CapForm, LimitForm
from billing.models import Budget, Entry, LimitChange


def amount(name: str) -> Column:
    return figure(name, name, lambda budget: amounts_of(budget)[name])


@admin.register(Budget)
class BudgetAdmin(BackofficeAdmin):
    list_display = [
        column("kind", "kind", lambda budget: budget.kind),
        "account",
        "key",
        amount("limit"),
        amount("spent"),
        amount("held"),
        amount("left"),
    ]
    list_filter = ["window", "unit"]
    list_select_related = ["account", "key"]
    ordering = ["-pk"]
    search_fields = ["account__name", "key__name"]
    search_help_text = "By name of the account or the key."
    fields = list_display
    readonly_fields = list_display
    form = LimitForm
    when_empty = "An account that is not postpaid opens its wallet; a cap is added here."

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Refuse wallets: what is in one moves by entries alone."""
        is_wallet = obj is not None and obj.is_wallet
        return not is_wallet and super().has_change_permission(request, obj)

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        return this_month(super().get_queryset(request))

    def get_fields(self, request: HttpRequest, obj: Any = None) -> Any:
        editable = self.has_change_permission(request, obj)
        return [*self.fields, "new_limit"] if editable else self.fields

    def add_view(
        self, request: HttpRequest, form_url: str = "", extra_context: Any = None
    ) -> HttpResponse:
        self.require(request, "billing.add_budget")
        form = CapForm(request.POST or None, initial=prefilled(CapForm, request.GET))
        budget = self._open(request, form) if form.is_valid() else None
        if budget is None:
            note = "A wallet opens with its account. A cap limits one month (UTC) at a time."
            return self.form_page(request, form, title="Add a cap", submit="Add cap", note=note)
        self.message_user(request, f"The {budget} is active.", messages.SUCCESS)
        return HttpResponseRedirect(reverse("admin:billing_budget_changelist"))

    @transaction.atomic
    def _open(self, request: HttpRequest, form: CapForm) -> Budget | None:
        said, by = form.cleaned_data, operator(request)
        unit, window = Budget.Unit(said["unit"]), Budget.Window.MONTH
        try:
            budget = ledger.open_budget(said["account"], unit, window, key=said["key"], by=by)
        except ValueError as error:
            form.add_error(None, str(error))
            return None
        ledger.set_limit(budget, said["limit"], by=by)
        budget.limit = said["limit"]
        self.log_addition(request, budget, f"Limit: {limit_of(budget)}.")
        return budget

    def save_model(self, request: HttpRequest, obj: Any, form: Any, change: bool) -> None:
        """Write the limit alone: requests move the other numbers at this very moment."""
        obj.limit = form.cleaned_data["new_limit"]
        ledger.set_limit(obj, obj.limit, by=operator(request))

    def construct_change_message(
        self, request: HttpRequest, form: Any, formsets: Any, add: bool = False
    ) -> Any:
        return f"Limit: {limit_of(form.instance)}."


def limit_of(budget: Budget) -> str:
    return in_unit(budget.amount(budget.limit), budget.unit)


@admin.register(LimitChange)
class LimitChangeAdmin(ReadOnlyAdmin):
    list_display = [
        moment("changed_at", "changed"),
        "budget",
        figure("old", "from", lambda change: "-" if change.old is None else _said(change, "old")),
        figure("new", "to", lambda change: _said(change, "new")),
        column("by", "by", lambda change: change.author),
    ]
    list_display_links = None
    list_select_related = ["budget__account", "budget__key"]
    sortable_by = ()
    search_fields = ["budget__account__name", "budget__key__name"]
    search_help_text = "By name of the account or the key."
    fields = list_display
    readonly_fields = list_display
    when_empty = "Opening a budget and changing its limit are written here."


def _said(change: LimitChange, name: str) -> str:
    return in_unit(change.budget.amount(getattr(change, name)), change.budget.unit)


@admin.register(Entry)
class EntryAdmin(ReadOnlyAdmin):
    list_display = [
        moment("created_at", "posted"),
        "account",
        "kind",
        figure("amount", f"amount, {settings.CURRENCY}", lambda entry: money(entry.amount)),
        "reason",
        column("reference", "reference", lambda entry: entry.reference or "-"),
        column("by", "by", lambda entry: entry.author),
    ]
    list_display_links = None
    list_filter = ["kind"]
    linked_by = ("account__exact",)
    list_select_related = ["account"]
    sortable_by = ()
    search_fields = ["account__name", "reason", "=reference"]
    search_help_text = "By name of the account, words of the reason, or a payment's reference."
    fields = list_display
    readonly_fields = list_display
    when_empty = "Money is put in on the page of an account, or by manage.py grant."
