"""Customers: the list, the page, and the page that issues a key."""

from typing import TYPE_CHECKING, Any, ClassVar

from django.contrib import admin, messages
from django.contrib.admin.helpers import ACTION_CHECKBOX_NAME
from django.core.exceptions import ValidationError
from django.db import IntegrityError, transaction
from django.db.models import Count, IntegerField, OuterRef, QuerySet, Subquery
from django.db.models.functions import Coalesce
from django.forms.models import BaseInlineFormSet
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse
from django.utils import timezone
from django.views.decorators.debug import sensitive_variables

from accounts import customers, keys
from accounts.admin.base import BackofficeAdmin, column, figure, moment, operator
from accounts.admin.keys import IN_FORCE, with_state
from accounts.forms import AccountForm, IssueKeyForm
from accounts.models import Account, ApiKey, Membership, Scope

if TYPE_CHECKING:
    _Inline = admin.TabularInline[Any, Any]
    _FormSet = BaseInlineFormSet[Any, Any, Any]
else:
    _Inline = admin.TabularInline
    _FormSet = BaseInlineFormSet

# More keys than this are a click away.
KEYS_ON_PAGE = 20


class MemberFormSet(_FormSet):
    def clean(self) -> None:
        """Keep an owner: keys are issued in the owner's name."""
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


@admin.register(Account)
class AccountAdmin(BackofficeAdmin):
    list_display = [
        "name",
        column("state", "status", lambda account: account.get_status_display(), "status"),
        column("owner", "owner", lambda account: account.owner or "-", "owner"),
        figure("keys", "keys in force", lambda account: str(account.keys_in_force)),
        moment("created_at", "created"),
    ]
    list_filter = ["status"]
    search_fields = ["name", "memberships__user__username", "memberships__user__email"]
    search_help_text = "By name of the account, name or address of a member."
    actions = ["suspend", "activate"]
    fields = ["name", "status", "isolate_prompts"]
    # Suspending asks first, on a page of its own.
    readonly_fields: ClassVar[Any] = ["status"]
    inlines = [MemberInline]
    when_empty = "Add an account here, or run manage.py create_account."
    add_form = AccountForm
    issue_form = IssueKeyForm

    def get_urls(self) -> list[URLPattern]:
        issue = self.admin_site.admin_view(self.issue_key_view)
        own = path("<path:object_id>/issue-key/", issue, name="accounts_account_issue_key")
        return [own, *super().get_urls()]

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        owners = Membership.objects.filter(account=OuterRef("pk"), role=Membership.Role.OWNER)
        in_force = with_state(ApiKey.objects.filter(account=OuterRef("pk")), timezone.now())
        in_force = in_force.filter(state=IN_FORCE).order_by().values("account")
        count = Subquery(in_force.annotate(n=Count("pk")).values("n"), IntegerField())
        rows: QuerySet[Any] = (
            super()
            .get_queryset(request)
            .annotate(
                owner=Subquery(owners.order_by("pk").values("user__username")[:1]),
                keys_in_force=Coalesce(count, 0),
            )
        )
        return rows

    # --- Add, and the page ------------------------------------------------------------------

    def add_view(
        self, request: HttpRequest, form_url: str = "", extra_context: Any = None
    ) -> HttpResponse:
        self.require(request, "accounts.add_account")
        form = self.add_form(request.POST or None)
        if not form.is_valid():
            return self.form_page(request, form, title="Add account", submit="Add account")
        with transaction.atomic():
            account = self.create(request, form)
            self.log_addition(request, account, "Added.")
        text = f"The account {account} is there. {self.next_step(account)}"
        self.message_user(request, text, messages.SUCCESS)
        return self.to_page(account)

    def create(self, request: HttpRequest, form: AccountForm) -> Account:
        return customers.create(form.cleaned_data["name"], owner=form.owner())

    def next_step(self, account: Account) -> str:
        """Say what a new account lacks before its first request can be served."""
        return "Next, issue a key."

    def to_page(self, account: Account) -> HttpResponseRedirect:
        return HttpResponseRedirect(reverse("admin:accounts_account_change", args=[account.pk]))

    def render_change_form(
        self, request: HttpRequest, context: dict[str, Any], *args: Any, **kwargs: Any
    ) -> HttpResponse:
        if account := kwargs.get("obj"):
            context.update(self.facts(account))
        return super().render_change_form(request, context, *args, **kwargs)

    def facts(self, account: Account) -> dict[str, Any]:
        """Return what the page shows besides its form."""
        newest = with_state(account.keys.order_by("-pk"), timezone.now())[: KEYS_ON_PAGE + 1]
        shown = list(newest)
        return {"keys": shown[:KEYS_ON_PAGE], "more_keys": len(shown) > KEYS_ON_PAGE}

    def save_formset(self, request: HttpRequest, form: Any, formset: Any, change: bool) -> None:
        super().save_formset(request, form, formset, change)
        for member in getattr(formset, "deleted_objects", []):
            self._tell_of_keys(request, member)

    def _tell_of_keys(self, request: HttpRequest, member: Membership) -> None:
        """Say which keys go on when a member is removed: keys belong to the account."""
        issued = with_state(ApiKey.objects.filter(user=member.user_id), timezone.now())
        working = issued.filter(account=member.account_id, state=IN_FORCE).count()
        if working:
            text = (
                f"Keys issued for {member.user} that still work, for they belong to the account: "
                f"{working}. Revoke those that nobody else uses, under API keys."
            )
            self.message_user(request, text, messages.WARNING)

    # --- Suspend and activate ---------------------------------------------------------------

    @admin.action(description="Suspend selected accounts", permissions=["change"])
    def suspend(self, request: HttpRequest, accounts: QuerySet[Account]) -> HttpResponse | None:
        if "confirmed" not in request.POST:
            return self._ask(request, accounts)
        self._set_status(request, accounts, Account.Status.SUSPENDED)
        return None

    def _ask(self, request: HttpRequest, accounts: QuerySet[Account]) -> HttpResponse:
        context = {
            **self.admin_site.each_context(request),
            "opts": self.opts,
            "title": "Suspend accounts",
            "accounts": accounts.exclude(status=Account.Status.SUSPENDED),
            "checkbox": ACTION_CHECKBOX_NAME,
        }
        return TemplateResponse(request, "admin/accounts/account/suspend.html", context)

    @admin.action(description="Activate selected accounts", permissions=["change"])
    def activate(self, request: HttpRequest, accounts: QuerySet[Account]) -> None:
        self._set_status(request, accounts, Account.Status.ACTIVE)

    def _set_status(
        self, request: HttpRequest, accounts: QuerySet[Account], status: Account.Status
    ) -> None:
        changed = list(accounts.exclude(status=status))
        with transaction.atomic():
            Account.objects.filter(pk__in=[each.pk for each in changed]).update(status=status)
            for account in changed:
                self.log_change(request, account, f"Status is now: {status.label}.")
        names = ", ".join(account.name for account in changed[:5]) or "None"
        more = f" and {len(changed) - 5} more" if len(changed) > 5 else ""
        self.message_user(request, f"Now {status.label.lower()}: {names}{more}.")

    # --- Issue a key ------------------------------------------------------------------------

    @sensitive_variables("secret")
    def issue_key_view(self, request: HttpRequest, object_id: str) -> HttpResponse:
        """Issue a key and show it in this very answer: no redirect carries it, nothing keeps it."""
        self.require(request, "accounts.add_apikey")
        account = self.find(request, object_id)
        controls_models = request.user.has_perm("accounts.grant_models_scope")
        form = self.issue_form(request.POST or None, controls_models=controls_models)
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
        key, secret = keys.issue(account, **form.issuing(), by=operator(request))
        self.log_change(request, account, f"Issued key {key.pk} (…{key.last_four}).")
        return key, secret

    def example_model(self, key: ApiKey) -> str:
        """Return a model for the example request."""
        return key.allowed_models[0] if key.allowed_models else "llama3.2"

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
            "unsold": keys.not_for_sale(key.allowed_models, timezone.now()),
            "model": self.example_model(key) if key.allows(Scope.INFER) else "",
            "gateway": f"{request.scheme}://{request.get_host()}",
        }
        page = "admin/accounts/account/key_issued.html"
        response = TemplateResponse(request, page, context, status=200 if secret else 409)
        response["Cache-Control"] = "no-store"
        response["Referrer-Policy"] = "no-referrer"
        return response
