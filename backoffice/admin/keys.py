"""API keys: the list, a key's page, and revoking. A key is issued on its account's page."""

from typing import Any

from django.contrib import admin, messages
from django.db import transaction
from django.db.models import QuerySet, TextField
from django.db.models.functions import Cast
from django.http import HttpRequest, HttpResponse
from django.utils import timezone

from accounts import keys
from accounts.models import ApiKey, Scope
from backoffice.admin.base import BackofficeAdmin, StateFilter
from backoffice.admin.formats import column, datetime_column


class KeyStateFilter(StateFilter):
    states = tuple(ApiKey.State.values)


class ScopeFilter(admin.SimpleListFilter):
    title = "scope"
    parameter_name = "scope"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return [(scope.value, scope.label) for scope in Scope]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        if self.value() is None:
            return queryset
        # SQLite cannot search a JSON list, but both databases can search its text.
        queryset = queryset.annotate(scopes_text=Cast("scopes", TextField()))
        return queryset.filter(scopes_text__contains=f'"{self.value()}"')


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
        datetime_column("expiry", "expires", empty="never"),
        datetime_column("last_used_at", "last used", empty="never"),
    ]
    list_filter = [KeyStateFilter, ScopeFilter]
    linked_by = ("account__exact", "user__exact")
    list_select_related = ["account"]
    search_fields = ["name", "account__name", "=last_four"]
    search_help_text = "By name of the key or its account, or by the last four characters."
    actions = ["revoke_selected"]
    # The digest and the start of the secret are not shown to operators.
    fields = [
        "name",
        "account",
        "user",
        column("last_four", "ends in", lambda key: f"…{key.last_four}"),
        column("scopes", "scopes", scopes_of),
        column("models", "models", models_of),
        column("state", "state", lambda key: key.state),
        datetime_column("created", "created"),
        column("by", "issued by", lambda key: key.author),
        datetime_column("expiry", "expires", empty="never"),
        datetime_column("last_used_at", "last used", empty="never"),
        datetime_column("revoked_at", "revoked", empty="no"),
    ]
    readonly_fields = fields[1:]
    when_empty = "Issue a key on the page of its account."

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        rows: Any = super().get_queryset(request)
        stated: QuerySet[Any] = rows.with_state(timezone.now())
        return stated

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def save_model(self, request: HttpRequest, obj: Any, form: Any, change: bool) -> None:
        keys.rename(obj.pk, obj.name)

    @admin.action(description="Revoke selected keys", permissions=["change"])
    def revoke_selected(
        self, request: HttpRequest, selected: QuerySet[ApiKey]
    ) -> HttpResponse | None:
        if "confirmed" not in request.POST:
            return self._confirm_revocation(request, selected)
        with transaction.atomic():
            revoked = [key for key in selected if keys.revoke(key.pk)]
            for key in revoked:
                self.log_change(request, key, "Revoked.")
        number = "1 key" if len(revoked) == 1 else f"{len(revoked)} keys"
        text = f"Revoked {number}. Requests with a revoked key are rejected."
        self.message_user(request, text, messages.SUCCESS)
        return None

    def _confirm_revocation(self, request: HttpRequest, selected: QuerySet[ApiKey]) -> HttpResponse:
        unrevoked = selected.filter(revoked_at=None)
        return self.confirmation_page(
            request,
            {key.pk: f"{key} of {key.account}" for key in unrevoked},
            action="revoke_selected",
            verb="Revoke",
            consequence="Requests with these keys are rejected for good. Running responses are "
            "cancelled within a second and billed for the tokens produced.",
            otherwise="These keys are already revoked.",
        )
