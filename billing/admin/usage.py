"""What was used: single requests, days, and what is set aside right now. All read-only."""

from collections.abc import Mapping
from typing import Any

from django.conf import settings
from django.contrib import admin
from django.db.models import BooleanField, QuerySet
from django.db.models.expressions import RawSQL
from django.http import HttpRequest

from accounts.admin.base import Column, column, figure, moment
from billing.admin.figures import money, tokens
from billing.admin.lists import CURSOR, DayFilter, KeysetAdmin, RequestAdmin, RequestDayFilter
from billing.models import Hold, TokenUsage, UsageDaily
from billing.money import from_units
from gateway.metering import CountSource


def count(field: str, label: str) -> Column:
    return figure(field, label, lambda row: tokens(getattr(row, field)))


def amount(field: str, label: str) -> Column:
    return figure(field, f"{label}, {settings.CURRENCY}", lambda row: money(getattr(row, field)))


def unit_price(field: str, label: str) -> Column:
    return figure(field, label, lambda row: money(from_units(getattr(row, field))))


def outcome_of(row: TokenUsage) -> str:
    """Return how an answer ended, and what is unusual about its bill."""
    notes = [row.get_outcome_display()]
    if row.count_source != CountSource.UPSTREAM:
        notes.append(row.count_source)
    if not row.billed:
        notes.append("not billed")
    if row.adjusts:
        notes.append("an adjustment")
    return ", ".join(notes)


CUSTOMER = column("customer", "customer", lambda row: f"{row.account}, {row.key}")
MODEL = column("model", "model", lambda row: f"{row.model}, {row.operation}")
COUNTED_BY = {
    CountSource.UPSTREAM: "the model server",
    CountSource.COUNTED: "the gateway",
    CountSource.ESTIMATED: "an estimate",
}


def source_of(row: TokenUsage) -> str:
    return COUNTED_BY[CountSource(row.count_source)]


class OperationFilter(admin.SimpleListFilter):
    """Django's own would look through all rows for the values there are."""

    title = "operation"
    parameter_name = "operation"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return [(name, name) for name in ("generate", "chat", "embed")]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        return queryset.filter(operation=self.value()) if self.value() else queryset


@admin.register(TokenUsage)
class TokenUsageAdmin(RequestAdmin):
    list_display = [
        moment("settled_at", "settled (UTC)", sortable=False),
        CUSTOMER,
        MODEL,
        count("prompt_tokens", "read"),
        count("completion_tokens", "written"),
        amount("cost", "cost"),
        column("outcome", "outcome", outcome_of),
    ]
    list_filter = [DayFilter, "outcome", "billed", "count_source", OperationFilter]
    linked_by = (CURSOR, "account__exact")
    list_select_related = ["account", "key"]
    narrowed_by_day = ("outcome__exact", "billed__exact", "count_source__exact", "operation")
    fields = [
        "request_id",
        column("adjusts", "adjusts", lambda row: str(row.adjusts or "nothing")),
        "account",
        "key",
        "model",
        "operation",
        column("outcome", "outcome", outcome_of),
        column("count_source", "counted by", source_of),
        count("prompt_tokens", "tokens read"),
        count("completion_tokens", "tokens written"),
        unit_price("prompt_price", "price of a token read"),
        unit_price("completion_price", "price of a token written"),
        amount("cost", "cost"),
        "price",
        moment("started_at", "started (UTC)"),
        moment("settled_at", "settled (UTC)"),
        "day",
    ]
    readonly_fields = fields
    when_empty = "Every answer leaves a row. Issue a key and ask a model something."


class HoldStateFilter(admin.SimpleListFilter):
    title = "state"
    parameter_name = "state"

    def lookups(self, request: HttpRequest, model_admin: Any) -> Any:
        return Hold.State.choices

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        if self.value() == Hold.State.OPEN:
            return queryset.filter(pk__in=Hold.objects.order_by().filter(IS_OPEN).values("pk"))
        return queryset.filter(state=self.value()) if self.value() else queryset


# Written out, for SQLite does not see that a parameter is what its index of open holds is for.
IS_OPEN: Any = RawSQL("state = 'open'", [], output_field=BooleanField())


@admin.register(Hold)
class HoldAdmin(RequestAdmin):
    list_display = [
        moment("opened_at", "opened (UTC)", sortable=False),
        CUSTOMER,
        MODEL,
        "state",
        amount("amount", "at most"),
        count("tokens", "tokens at most"),
        count("progress", "written"),
    ]
    list_filter = [RequestDayFilter, HoldStateFilter, OperationFilter]
    list_select_related = ["account", "key"]
    narrowed_by_day = ("state", "operation")
    fields = [
        "request_id",
        "account",
        "key",
        "model",
        "operation",
        "state",
        amount("amount", "at most"),
        count("tokens", "tokens at most"),
        count("prompt_estimate", "prompt tokens, estimated"),
        count("progress", "tokens written so far"),
        "price",
        "worker",
        moment("opened_at", "opened (UTC)"),
        moment("lease_until", "lease until (UTC)"),
        moment("closed_at", "closed (UTC)", never="not yet"),
    ]
    readonly_fields = fields
    when_empty = "Every request sets aside what it may cost at most; it shows here."

    def looks_at_one_day(self, said: Mapping[str, str]) -> bool:
        # Open holds are few, and the old ones among them are what one looks for.
        return said.get("state") != Hold.State.OPEN and super().looks_at_one_day(said)


@admin.register(UsageDaily)
class UsageDailyAdmin(KeysetAdmin):
    list_display = [
        column("day", "day", lambda row: f"{row.day:%Y-%m-%d}"),
        CUSTOMER,
        "model",
        count("requests", "requests"),
        count("unbilled", "not billed"),
        count("prompt_tokens", "read"),
        count("completion_tokens", "written"),
        amount("cost", "cost"),
    ]
    list_display_links = None
    list_filter = [DayFilter]
    linked_by = (CURSOR, "account__exact")
    list_select_related = ["account", "key"]
    fields = [*list_display, "price"]
    readonly_fields = fields
    when_empty = "Days of usage are summed up while requests are settled."
