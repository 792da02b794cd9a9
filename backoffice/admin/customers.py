"""Customers: the list, a customer's page with keys, budgets and entries, and the pages that issue a
key and add credit."""

from collections.abc import Collection
from typing import TYPE_CHECKING, Any, ClassVar

from django.conf import settings
from django.contrib import admin, messages
from django.core.exceptions import ValidationError
from django.db import IntegrityError, transaction
from django.db.models import Count, F, IntegerField, OuterRef, QuerySet, Subquery
from django.db.models.functions import Coalesce
from django.forms.models import BaseInlineFormSet
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse
from django.utils import timezone
from django.views.decorators.debug import sensitive_variables

from accounts import customers, keys
from accounts.models import Account, ApiKey, Membership, Scope
from backoffice.admin.base import BackofficeAdmin, operator
from backoffice.admin.budgets import budgets_of
from backoffice.admin.formats import column, datetime_column, money, number_column
from backoffice.forms.customers import AccountForm, IssueKeyForm
from backoffice.forms.money import CreditForm
from billing import ledger, price_book, statements
from billing.models import Budget, Entry
from billing.money import from_units
from gateway import providers

if TYPE_CHECKING:
    _Inline = admin.TabularInline[Any, Any]
    _FormSet = BaseInlineFormSet[Any, Any, Any]
else:
    _Inline = admin.TabularInline
    _FormSet = BaseInlineFormSet

# A customer's page links to lists of the other keys and entries.
KEYS_ON_PAGE, ENTRIES_ON_PAGE = 20, 10
# A message names this many accounts and counts the others.
NAMES_IN_MESSAGE = 5


class MemberFormSet(_FormSet):
    def clean(self) -> None:
        """Require an owner: keys are issued in the owner's name."""
        super().clean()
        members = [form.cleaned_data for form in self.forms if form.is_valid()]
        kept = [member for member in members if not member.get("DELETE")]
        if not any(member.get("role") == Membership.Role.OWNER for member in kept):
            raise ValidationError("An account needs an owner.")


class MemberInline(_Inline):
    model = Membership
    formset = MemberFormSet
    verbose_name = "member"
    autocomplete_fields = ["user"]
    extra = 0


def balance_text(account: Any) -> str:
    """Return the wallet's balance from the annotation `credit`."""
    return "postpaid" if account.credit is None else money(from_units(account.credit))


@admin.register(Account)
class AccountAdmin(BackofficeAdmin):
    list_display = [
        "name",
        column("state", "status", lambda account: account.get_status_display(), "status"),
        column("owner", "owner", lambda account: account.owner or "-", "owner"),
        number_column("balance", f"balance, {settings.CURRENCY}", balance_text, "credit"),
        number_column("keys", "valid keys", lambda account: str(account.valid_keys)),
        datetime_column("created_at", "created"),
    ]
    list_filter = ["status"]
    search_fields = ["name", "memberships__user__username", "memberships__user__email"]
    search_help_text = "By account name, or by username or email of a member."
    actions = ["suspend", "activate"]
    fields = ["name", "status", "isolate_prompts", "balance"]
    # The status is changed by actions, which ask for confirmation.
    readonly_fields: ClassVar[Any] = ["status", "balance"]
    inlines = [MemberInline]
    when_empty = "Add an account here, or run manage.py create_account."

    def get_urls(self) -> list[URLPattern]:
        issue = self.admin_site.admin_view(self.issue_key_view)
        credit = self.admin_site.admin_view(self.add_credit_view)
        return [
            path("<path:object_id>/issue-key/", issue, name="accounts_account_issue_key"),
            path("<path:object_id>/add-credit/", credit, name="accounts_account_add_credit"),
            *super().get_urls(),
        ]

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        owners = Membership.objects.filter(account=OuterRef("pk"), role=Membership.Role.OWNER)
        valid = ApiKey.objects.filter(account=OuterRef("pk")).usable(timezone.now())
        counts = valid.order_by().values("account").annotate(n=Count("pk")).values("n")
        wallets = Budget.objects.wallets().filter(account=OuterRef("pk"))
        rows: QuerySet[Any] = super().get_queryset(request)
        annotated: QuerySet[Any] = rows.annotate(
            owner=Subquery(owners.order_by("pk").values("user__username")[:1]),
            valid_keys=Coalesce(Subquery(counts, IntegerField()), 0),
            credit=Subquery(wallets.values(balance=F("limit") - F("spent"))),
        )
        return annotated

    @admin.display(description="balance")
    def balance(self, account: Account) -> str:
        balance = statements.balance(account)
        if balance is None:
            return "Postpaid: no wallet"
        return f"{money(balance)} {settings.CURRENCY}, including holds of running requests"

    # --- Add an account, and its page -------------------------------------------------------------

    def add_view(
        self, request: HttpRequest, form_url: str = "", extra_context: Any = None
    ) -> HttpResponse:
        self.require(request, "accounts.add_account")
        form = AccountForm(request.POST or None)
        if form.is_valid() and (account := self._create(request, form)):
            text = f"Account {account} created. {next_step(account)}"
            self.message_user(request, text, messages.SUCCESS)
            return self._to_page(account)
        return self.form_page(request, form, title="Add account", submit="Add account")

    def _create(self, request: HttpRequest, form: AccountForm) -> Account | None:
        try:
            with transaction.atomic():
                account = form.create_account()
                if not form.cleaned_data["postpaid"]:
                    unit, window = Budget.Unit.MONEY, Budget.Window.TOTAL
                    ledger.open_budget(account, unit, window, by=operator(request))
                self.log_addition(request, account, "Added.")
        except ValueError as error:
            form.add_error(None, str(error))
            return None
        return account

    def _to_page(self, account: Account) -> HttpResponseRedirect:
        return HttpResponseRedirect(reverse("admin:accounts_account_change", args=[account.pk]))

    def render_change_form(
        self, request: HttpRequest, context: dict[str, Any], *args: Any, **kwargs: Any
    ) -> HttpResponse:
        if account := kwargs.get("obj"):
            context.update(page_context(account))
        return super().render_change_form(request, context, *args, **kwargs)

    def save_model(self, request: HttpRequest, obj: Any, form: Any, change: bool) -> None:
        customers.change(obj)

    def save_formset(self, request: HttpRequest, form: Any, formset: Any, change: bool) -> None:
        saved = formset.save(commit=False)
        customers.change_members(saved=saved, removed=formset.deleted_objects)
        for member in formset.deleted_objects:
            self._warn_of_valid_keys(request, member)

    def _warn_of_valid_keys(self, request: HttpRequest, member: Membership) -> None:
        """Warn that the keys of a removed member stay valid: they belong to the account."""
        issued = ApiKey.objects.filter(user=member.user_id, account=member.account_id)
        if count := issued.usable(timezone.now()).count():
            text = (
                f"Keys issued for {member.user} that are still valid, because they belong to the "
                f"account: {count}. Revoke the ones that are no longer needed, under API keys."
            )
            self.message_user(request, text, messages.WARNING)

    # --- Suspend and activate ---------------------------------------------------------------------

    @admin.action(description="Suspend selected accounts", permissions=["change"])
    def suspend(self, request: HttpRequest, accounts: QuerySet[Account]) -> HttpResponse | None:
        if "confirmed" not in request.POST:
            return self._confirm_suspension(request, accounts)
        with transaction.atomic():
            changed = customers.suspend(ids_of(accounts))
            self._log_status(request, changed, Account.Status.SUSPENDED)
        return None

    def _confirm_suspension(
        self, request: HttpRequest, accounts: QuerySet[Account]
    ) -> HttpResponse:
        active: QuerySet[Any] = accounts.exclude(status=Account.Status.SUSPENDED)
        return self.confirmation_page(
            request,
            {account.pk: f"{account}: {count_of_keys(account.valid_keys)}" for account in active},
            action="suspend",
            verb="Suspend",
            consequence="Requests with keys of these accounts are rejected until you activate the "
            "account again. Running responses are cancelled within a second and billed for the "
            "tokens produced.",
            otherwise="These accounts are already suspended.",
        )

    @admin.action(description="Activate selected accounts", permissions=["change"])
    def activate(self, request: HttpRequest, accounts: QuerySet[Account]) -> None:
        with transaction.atomic():
            changed = customers.activate(ids_of(accounts))
            self._log_status(request, changed, Account.Status.ACTIVE)

    def _log_status(
        self, request: HttpRequest, changed: list[Account], status: Account.Status
    ) -> None:
        for account in changed:
            self.log_change(request, account, f"Status changed to {status.value}.")
        names = ", ".join(account.name for account in changed[:NAMES_IN_MESSAGE]) or "no account"
        more = len(changed) - NAMES_IN_MESSAGE
        others = f" and {more} more" if more > 0 else ""
        self.message_user(request, f"Status changed to {status.value}: {names}{others}.")

    # --- Issue a key ------------------------------------------------------------------------------

    @sensitive_variables("secret")
    def issue_key_view(self, request: HttpRequest, object_id: str) -> HttpResponse:
        """Issue a key and show it in this response: no redirect carries it, and nothing stores
        it."""
        self.require(request, "accounts.add_apikey")
        account = self.find(request, object_id)
        may_grant_models = request.user.has_perm("accounts.grant_models_scope")
        form = IssueKeyForm(request.POST or None, may_grant_models=may_grant_models)
        if form.is_valid():
            try:
                key, secret = self._issue(request, account, form)
            except Membership.DoesNotExist:
                form.add_error(None, "This account has no owner. Add one first.")
            except IntegrityError:
                return self._show_key(request, account, form.key_issued_before())
            else:
                return self._show_key(request, account, key, secret)
        title = f"Issue a key for {account}"
        return self.form_page(request, form, title=title, submit="Issue key", original=account)

    @transaction.atomic
    @sensitive_variables("secret")
    def _issue(
        self, request: HttpRequest, account: Account, form: IssueKeyForm
    ) -> tuple[ApiKey, str]:
        key, secret = keys.issue(account, **form.arguments(), by=operator(request))
        self.log_change(request, account, f"Issued key {key.pk} (…{key.last_four}).")
        return key, secret

    @sensitive_variables("secret")
    def _show_key(
        self, request: HttpRequest, account: Account, key: ApiKey, secret: str = ""
    ) -> HttpResponse:
        context = {
            **self.admin_site.each_context(request),
            "opts": self.opts,
            "title": f"Key for {account}",
            "original": account,
            "key": key,
            "secret": secret,
            "unpriced": keys.not_for_sale(key.allowed_models, timezone.now()),
            "model": example_model(key) if secret and key.allows(Scope.INFER) else "",
            "gateway": f"{request.scheme}://{request.get_host()}",
        }
        page = "backoffice/account/key_issued.html"
        response = TemplateResponse(request, page, context, status=200 if secret else 409)
        response["Cache-Control"] = "no-store"
        response["Referrer-Policy"] = "no-referrer"
        return response

    # --- Add credit -------------------------------------------------------------------------------

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
            text = f"{entry.get_kind_display()} of {amount} posted to {account}."
            self.message_user(request, text, messages.SUCCESS)
            return self._to_page(account)
        title = f"Add credit to {account}"
        return self.form_page(request, form, title=title, submit="Post", original=account)

    @transaction.atomic
    def _post(self, request: HttpRequest, account: Account, form: CreditForm) -> Entry | None:
        """Post the entry, unless the ledger rejects it or the form was submitted before."""
        # The second of two submissions waits for this lock, and then sees a newer entry.
        Account.objects.select_for_update(no_key=True).get(pk=account.pk)
        if newest_entry(account) != form.cleaned_data["after"]:
            form.add_error(None, "Another entry was posted first. Check whether it was yours.")
            return None
        try:
            entry = ledger.post(account, **form.arguments(), by=operator(request))
        except ValueError as error:
            form.add_error(None, str(error))
            return None
        self.log_change(request, account, f"{entry}: {entry.reason}")
        return entry


def ids_of(accounts: QuerySet[Account]) -> Collection[int]:
    return list(accounts.values_list("pk", flat=True))


def count_of_keys(number: int) -> str:
    return "1 valid key" if number == 1 else f"{number} valid keys"


def next_step(account: Account) -> str:
    """Return what an operator must do before requests of a new account are served."""
    balance = statements.balance(account)
    if balance is None or balance > 0:
        return "Next, issue a key."
    return "Next, add credit: its wallet is empty, and requests are rejected. Then issue a key."


def page_context(account: Account) -> dict[str, Any]:
    """Return what a customer's page shows besides its form."""
    account_keys = ApiKey.objects.filter(account=account).order_by("-pk")
    newest = list(account_keys.with_state(timezone.now())[: KEYS_ON_PAGE + 1])
    entries = list(account.entries.all()[: ENTRIES_ON_PAGE + 1])
    return {
        "keys": newest[:KEYS_ON_PAGE],
        "more_keys": len(newest) > KEYS_ON_PAGE,
        "budgets": budgets_of(account),
        "entries": [(entry, money(entry.amount)) for entry in entries[:ENTRIES_ON_PAGE]],
        "more_entries": len(entries) > ENTRIES_ON_PAGE,
        "currency": settings.CURRENCY,
    }


def newest_entry(account: Account) -> int:
    return account.entries.order_by("-pk").values_list("pk", flat=True).first() or 0


def example_model(key: ApiKey) -> str:
    """Return a model for the example request: one that the key can use, if there is one."""
    installed = [] if key.allowed_models else providers.installed_models() or []
    models = [*key.allowed_models, *installed]
    priced = price_book.effective_prices(timezone.now(), models)
    # Embedding models do not chat. Their capabilities would take a call for each model.
    chat = [name for name in models if name in priced and "embed" not in name]
    return next(iter([*chat, *key.allowed_models]), "llama3.2")
