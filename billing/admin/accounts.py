"""The page of an account with its money: balance, budgets, entries, and adding credit."""

from typing import Any, ClassVar

from django.conf import settings
from django.contrib import admin, messages
from django.db import transaction
from django.db.models import F, OuterRef, QuerySet, Subquery
from django.http import HttpRequest, HttpResponse
from django.urls import URLPattern, path
from django.utils import timezone

from accounts.admin import AccountAdmin as PlainAccountAdmin
from accounts.admin.base import figure, operator
from accounts.forms import AccountForm
from accounts.models import Account, ApiKey
from billing import clock, ledger, price_book, statements
from billing.admin.figures import in_unit, money
from billing.admin.forms import CreditForm, IssueCheckedKeyForm, PaidAccountForm
from billing.models import Budget, Entry
from billing.money import from_units
from billing.months import month_of
from gateway import providers

ENTRIES_ON_PAGE = 10


def balance(account: Any) -> str:
    """Return what the wallet has left, from the list's annotation."""
    return "postpaid" if account.credit is None else money(from_units(account.credit))


class AccountAdmin(PlainAccountAdmin):
    list_display = [
        *PlainAccountAdmin.list_display[:3],
        figure("balance", f"balance, {settings.CURRENCY}", balance, "credit"),
        *PlainAccountAdmin.list_display[3:],
    ]
    fields = [*PlainAccountAdmin.fields, "balance"]
    readonly_fields: ClassVar[Any] = [*PlainAccountAdmin.readonly_fields, "balance"]
    add_form = PaidAccountForm
    issue_form = IssueCheckedKeyForm

    def get_urls(self) -> list[URLPattern]:
        credit = self.admin_site.admin_view(self.add_credit_view)
        own = path("<path:object_id>/add-credit/", credit, name="accounts_account_add_credit")
        return [own, *super().get_urls()]

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        wallets = Budget.objects.wallets().filter(account=OuterRef("pk"))
        left = wallets.values(left_over=F("limit") - F("spent"))
        rows: QuerySet[Any] = super().get_queryset(request).annotate(credit=Subquery(left))
        return rows

    @admin.display(description="balance")
    def balance(self, account: Account) -> str:
        left = statements.balance(account)
        if left is None:
            return "Postpaid: no wallet"
        return f"{money(left)} {settings.CURRENCY}, what is held for open requests included"

    def create(self, request: HttpRequest, form: AccountForm) -> Account:
        account = super().create(request, form)
        if not form.cleaned_data["postpaid"]:
            money, total = Budget.Unit.MONEY, Budget.Window.TOTAL
            ledger.open_budget(account, money, total, by=operator(request))
        return account

    def next_step(self, account: Account) -> str:
        left = statements.balance(account)
        if left is None or left > 0:
            return super().next_step(account)
        return "Next, add credit: its wallet is empty, and requests are refused. Then issue a key."

    def facts(self, account: Account) -> dict[str, Any]:
        entries = account.entries.all()[: ENTRIES_ON_PAGE + 1]
        return {
            **super().facts(account),
            "budgets": budgets_of(account),
            "entries": [(entry, money(entry.amount)) for entry in entries[:ENTRIES_ON_PAGE]],
            "more_entries": len(entries) > ENTRIES_ON_PAGE,
            "currency": settings.CURRENCY,
        }

    def example_model(self, key: ApiKey) -> str:
        installed = [] if key.allowed_models else providers.installed_models() or []
        models = [*key.allowed_models, *installed]
        priced = price_book.effective_prices(timezone.now(), models)
        # An embedding model has no chat; its name is all that is known of it here.
        chat = [name for name in models if name in priced and "embed" not in name]
        return next(iter([*chat, *key.allowed_models]), "llama3.2")

    # --- Add credit -------------------------------------------------------------------------

    def add_credit_view(self, request: HttpRequest, object_id: str) -> HttpResponse:
        self.require(request, "billing.add_entry")
        account = self.find(request, object_id)
        form = CreditForm(
            request.POST or None,
            balance=statements.balance(account),
            initial={"after": newest_entry(account)},
        )
        if form.is_valid() and (entry := self._post(request, account, form)):
            amount = f"{money(entry.amount)} {settings.CURRENCY}"
            text = f"{entry.get_kind_display()} of {amount} is posted to {account}."
            self.message_user(request, text, messages.SUCCESS)
            return self.to_page(account)
        title = f"Add credit to {account}"
        return self.form_page(request, form, title=title, submit="Post", original=account)

    @transaction.atomic
    def _post(self, request: HttpRequest, account: Account, form: CreditForm) -> Entry | None:
        """Post the entry unless the form is refused: by the ledger, or as one sent twice."""
        # Whoever sends the form a second time waits here, and then finds an entry newer than it.
        Account.objects.select_for_update(no_key=True).get(pk=account.pk)
        if newest_entry(account) != form.cleaned_data["after"]:
            form.add_error(None, "Another entry came first. See whether it was yours.")
            return None
        try:
            entry = ledger.post(account, **form.posting(), by=operator(request))
        except ValueError as error:
            form.add_error(None, str(error))
            return None
        self.log_change(request, account, f"{entry}: {entry.reason}")
        return entry


def newest_entry(account: Account) -> int:
    return account.entries.order_by("-pk").values_list("pk", flat=True).first() or 0


def budgets_of(account: Account) -> list[dict[str, Any]]:
    """Return an account's budgets and those of its keys, as people read them."""
    budgets = this_month(account.budgets.select_related("key").order_by("pk"))
    return [{"budget": budget, **amounts_of(budget)} for budget in budgets]


def this_month(budgets: QuerySet[Budget]) -> QuerySet[Budget]:
    """Annotate budgets with what counts now, for `amounts_of`."""
    return statements.in_month(budgets, month_of(clock.read()))


def amounts_of(budget: Budget) -> dict[str, str]:
    """Return the limit, spent, held and left of a budget from `this_month`, with their unit."""
    state = statements.budget_state(budget)
    names = ("limit", "spent", "held", "left")
    return {name: in_unit(getattr(state, name), state.unit) for name in names}


admin.site.unregister(Account)
admin.site.register(Account, AccountAdmin)
