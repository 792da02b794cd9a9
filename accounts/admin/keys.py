"""API keys: who has which, and revoking them. A key is issued on the page of its account."""

from datetime import datetime
from typing import Any

from django.contrib import admin, messages
from django.contrib.admin.helpers import ACTION_CHECKBOX_NAME
from django.db import transaction
from django.db.models import Case, CharField, Q, QuerySet, TextField, Value, When
from django.db.models.functions import Cast
from django.http import HttpRequest, HttpResponse
from django.template.response import TemplateResponse
from django.utils import timezone

from accounts import keys
from accounts.admin.base import BackofficeAdmin, StateFilter, column, moment
from accounts.models import Account, ApiKey, Scope

IN_FORCE, SUSPENDED = "in force", "account suspended"
EXPIRED, REVOKED = "expired", "revoked"


def with_state(rows: QuerySet[Any], now: datetime) -> QuerySet[Any]:
    """Annotate keys with `state`, as authentication sees it."""
    state = Case(
        When(revoked_at__isnull=False, then=Value(REVOKED)),
        When(expiry__lte=now, then=Value(EXPIRED)),
        When(account__status=Account.Status.SUSPENDED, then=Value(SUSPENDED)),
        default=Value(IN_FORCE),
        output_field=CharField(),
    )
    stated: QuerySet[Any] = rows.annotate(state=state)
    return stated


class KeyStateFilter(StateFilter):
    states = (IN_FORCE, SUSPENDED, EXPIRED, REVOKED)


class ScopeFilter(admin.SimpleListFilter):
    title = "scope"
    parameter_name = "scope"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return [(scope.value, scope.label) for scope in Scope]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        if self.value() is None:
            return queryset
        # SQLite cannot look into a JSON list; as text both databases can.
        queryset = queryset.annotate(spelled=Cast("scopes", TextField()))
        return queryset.filter(spelled__contains=f'"{self.value()}"')


def scopes_of(key: ApiKey) -> str:
    return ", ".join(key.scopes)


def models_of(key: ApiKey) -> str:
    return ", ".join(key.allowed_models) or "every model"


@admin.register(ApiKey)
class ApiKeyAdmin(BackofficeAdmin):
    list_display = [
        "name",
        column("last_four", "ends in", lambda key: f"…{key.last_four}"),
        "account",
        column("scopes", "scopes", scopes_of),
        column("models", "models", models_of),
        column("state", "state", lambda key: key.state),
        moment("expiry", "expires", never="never"),
        moment("last_used_at", "last used", never="never"),
    ]
    list_filter = [KeyStateFilter, ScopeFilter]
    linked_by = ("account__exact", "user__exact")
    list_select_related = ["account"]
    search_fields = ["name", "account__name", "=last_four"]
    search_help_text = "By name of the key or the account, or the key's last four characters."
    actions = ["revoke_selected"]
    # The digest and the start of the secret are nobody's business.
    fields = [
        "name",
        "account",
        "user",
        column("last_four", "ends in", lambda key: f"…{key.last_four}"),
        column("scopes", "scopes", scopes_of),
        column("models", "models", models_of),
        column("state", "state", lambda key: key.state),
        moment("created", "created"),
        column("by", "issued by", lambda key: key.author),
        moment("expiry", "expires", never="never"),
        moment("last_used_at", "last used", never="never"),
        moment("revoked_at", "revoked", never="no"),
    ]
    readonly_fields = fields[1:]
    when_empty = "A key is issued on the page of its account."

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        return with_state(super().get_queryset(request), timezone.now())

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def save_model(self, request: HttpRequest, obj: Any, form: Any, change: bool) -> None:
        keys.rename(obj.pk, obj.name)

    @admin.action(description="Revoke selected keys", permissions=["change"])
    def revoke_selected(
        self, request: HttpRequest, selected: QuerySet[ApiKey]
    ) -> HttpResponse | None:
        if "confirmed" not in request.POST:
            return self._ask(request, selected)
        with transaction.atomic():
            revoked = [key for key in selected if keys.revoke(key.pk)]
            for key in revoked:
                self.log_change(request, key, "Revoked.")
        some = "1 key" if len(revoked) == 1 else f"{len(revoked)} keys"
        self.message_user(request, f"Revoked {some}, from the next request on.", messages.SUCCESS)
        return None

    def _ask(self, request: HttpRequest, selected: QuerySet[ApiKey]) -> HttpResponse:
        context = {
            **self.admin_site.each_context(request),
            "opts": self.opts,
            "title": "Revoke keys",
            "keys": selected.filter(~Q(state=REVOKED)),
            "checkbox": ACTION_CHECKBOX_NAME,
        }
        return TemplateResponse(request, "admin/accounts/apikey/revoke.html", context)
