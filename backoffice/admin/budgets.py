"""Wallets and caps, their changes, and the entries of wallets."""

from typing import Any

from django.conf import settings
from django.contrib import admin, messages
from django.db import transaction
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.urls import reverse

from accounts.models import Account
from backoffice.admin.base import BackofficeAdmin, ReadOnlyAdmin, operator, prefilled
from backoffice.admin.formats import (
    Column,
    column,
    datetime_column,
    in_unit,
    money,
    number_column,
)
from backoffice.forms.money import CapForm, LimitForm
from billing import clock, ledger, statements
from billing.models import Budget, Entry, LimitChange
from billing.months import month_of


def this_month(budgets: QuerySet[Budget]) -> QuerySet[Budget]:
    """Annotate budgets with their numbers of this month, for `amounts_of`."""
    return statements.in_month(budgets, month_of(clock.read()))


def amounts_of(budget: Budget) -> dict[str, str]:
    """Return limit, spent, held and left of a budget from `this_month`, with their unit."""
    state = statements.budget_state(budget)
    names = ("limit", "spent", "held", "left")
    return {name: in_unit(getattr(state, name), state.unit) for name in names}


def budgets_of(account: Account) -> list[dict[str, Any]]:
    """Return the budgets of an account and of its keys, with their amounts as text."""
    budgets = this_month(account.budgets.select_related("key").order_by("pk"))
    return [{"budget": budget, **amounts_of(budget)} for budget in budgets]


def amount(name: str) -> Column:
    return number_column(name, name, lambda budget: amounts_of(budget)[name])


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
    when_empty = "A wallet is created with its account, unless it is postpaid. Add a cap here."

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Allow no change of a wallet: only entries move its money."""
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
            note = "A cap limits one calendar month (UTC). A wallet is created with its account."
            return self.form_page(request, form, title="Add a cap", submit="Add cap", note=note)
        self.message_user(request, f"The {budget} is active.", messages.SUCCESS)
        return HttpResponseRedirect(reverse("admin:billing_budget_changelist"))

    @transaction.atomic
    def _open(self, request: HttpRequest, form: CapForm) -> Budget | None:
        cleaned, by = form.cleaned_data, operator(request)
        unit, window = Budget.Unit(cleaned["unit"]), Budget.Window.MONTH
        try:
            budget = ledger.open_budget(cleaned["account"], unit, window, key=cleaned["key"], by=by)
        except ValueError as error:
            form.add_error(None, str(error))
            return None
        ledger.set_limit(budget, cleaned["limit"], by=by)
        budget.limit = cleaned["limit"]
        self.log_addition(request, budget, f"Limit: {limit_of(budget)}.")
        return budget

    def save_model(self, request: HttpRequest, obj: Any, form: Any, change: bool) -> None:
        """Write only the limit: requests change the other numbers at the same time."""
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
        datetime_column("changed_at", "changed"),
        "budget",
        number_column("old", "from", lambda change: limit_text(change, change.old)),
        number_column("new", "to", lambda change: limit_text(change, change.new)),
        column("by", "by", lambda change: change.author),
    ]
    list_display_links = None
    list_select_related = ["budget__account", "budget__key"]
    sortable_by = ()
    search_fields = ["budget__account__name", "budget__key__name"]
    search_help_text = "By name of the account or the key."
    fields = list_display
    readonly_fields = list_display
    when_empty = "Each new budget and each change of a limit is listed here."


def limit_text(change: LimitChange, limit: int | None) -> str:
    return "-" if limit is None else in_unit(change.budget.amount(limit), change.budget.unit)


@admin.register(Entry)
class EntryAdmin(ReadOnlyAdmin):
    list_display = [
        datetime_column("created_at", "posted"),
        "account",
        "kind",
        number_column("amount", f"amount, {settings.CURRENCY}", lambda entry: money(entry.amount)),
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
    search_help_text = "By name of the account, words of the reason, or reference of a payment."
    fields = list_display
    readonly_fields = list_display
    when_empty = "Add credit on the page of an account, or run manage.py grant."
