"""Usage by request and by day, and holds of running requests. All read-only."""

from collections.abc import Mapping
from typing import Any

from django.conf import settings
from django.contrib import admin
from django.db.models import BooleanField, QuerySet
from django.db.models.expressions import RawSQL
from django.http import HttpRequest

from backoffice.admin.formats import (
    Column,
    column,
    datetime_column,
    money,
    number_column,
    tokens,
)
from backoffice.admin.keyset import CURSOR, DayFilter, KeysetAdmin, RequestAdmin, RequestDayFilter
from billing.models import Hold, TokenUsage, UsageDaily
from billing.money import from_units
from gateway.metering import CountSource, Operation


def count(field: str, label: str) -> Column:
    return number_column(field, label, lambda row: tokens(getattr(row, field)))


def amount(field: str, label: str) -> Column:
    return number_column(
        field, f"{label}, {settings.CURRENCY}", lambda row: money(getattr(row, field))
    )


def unit_price(field: str, label: str) -> Column:
    return number_column(field, label, lambda row: money(from_units(getattr(row, field))))


def outcome_of(row: TokenUsage) -> str:
    """Return how a response ended, and what is unusual about its bill."""
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
    """Offers the known operations. Django's own filter would search all rows for values."""

    title = "operation"
    parameter_name = "operation"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return [(name, name) for name in Operation]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        return queryset.filter(operation=self.value()) if self.value() else queryset


@admin.register(TokenUsage)
class TokenUsageAdmin(RequestAdmin):
    list_display = [
        datetime_column("settled_at", "settled (UTC)", sortable=False),
        CUSTOMER,
        MODEL,
        count("prompt_tokens", "prompt tokens"),
        count("completion_tokens", "completion tokens"),
        amount("cost", "cost"),
        column("outcome", "outcome", outcome_of),
    ]
    list_filter = [DayFilter, "outcome", "billed", "count_source", OperationFilter]
    linked_by = (CURSOR, "account__exact")
    list_select_related = ["account", "key"]
    filters_of_one_day = ("outcome__exact", "billed__exact", "count_source__exact", "operation")
    fields = [
        "request_id",
        column("adjusts", "adjusts", lambda row: str(row.adjusts or "nothing")),
        "account",
        "key",
        "model",
        "operation",
        column("outcome", "outcome", outcome_of),
        column("count_source", "counted by", source_of),
        count("prompt_tokens", "prompt tokens"),
        count("completion_tokens", "completion tokens"),
        unit_price("prompt_price", "price per prompt token"),
        unit_price("completion_price", "price per completion token"),
        amount("cost", "cost"),
        "price",
        datetime_column("started_at", "started (UTC)"),
        datetime_column("settled_at", "settled (UTC)"),
        "day",
    ]
    readonly_fields = fields
    when_empty = "Every response adds a row. Issue a key and send a request."


class HoldStateFilter(admin.SimpleListFilter):
    title = "state"
    parameter_name = "state"

    def lookups(self, request: HttpRequest, model_admin: Any) -> Any:
        return Hold.State.choices

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        if self.value() == Hold.State.OPEN:
            return queryset.filter(pk__in=Hold.objects.order_by().filter(IS_OPEN).values("pk"))
        return queryset.filter(state=self.value()) if self.value() else queryset


# A literal, because SQLite does not match a parameter with the condition of its partial index.
IS_OPEN: Any = RawSQL("state = 'open'", [], output_field=BooleanField())


@admin.register(Hold)
class HoldAdmin(RequestAdmin):
    list_display = [
        datetime_column("opened_at", "opened (UTC)", sortable=False),
        CUSTOMER,
        MODEL,
        "state",
        amount("amount", "held"),
        count("tokens", "tokens held"),
        count("progress", "completion tokens"),
    ]
    list_filter = [RequestDayFilter, HoldStateFilter, OperationFilter]
    list_select_related = ["account", "key"]
    filters_of_one_day = ("state", "operation")
    fields = [
        "request_id",
        "account",
        "key",
        "model",
        "operation",
        "state",
        amount("amount", "held"),
        count("tokens", "tokens held"),
        count("prompt_estimate", "estimated prompt tokens"),
        count("progress", "completion tokens so far"),
        "price",
        "worker",
        datetime_column("opened_at", "opened (UTC)"),
        datetime_column("lease_until", "lease until (UTC)"),
        datetime_column("closed_at", "closed (UTC)", empty="not yet"),
    ]
    readonly_fields = fields
    when_empty = "Every request holds the most it can cost. Its hold is listed here."

    def needs_a_day(self, query: Mapping[str, str]) -> bool:
        # Open holds are few, and an operator looks for the oldest of them.
        return query.get("state") != Hold.State.OPEN and super().needs_a_day(query)


@admin.register(UsageDaily)
class UsageDailyAdmin(KeysetAdmin):
    list_display = [
        column("day", "day", lambda row: f"{row.day:%Y-%m-%d}"),
        CUSTOMER,
        "model",
        count("requests", "requests"),
        count("unbilled", "not billed"),
        count("prompt_tokens", "prompt tokens"),
        count("completion_tokens", "completion tokens"),
        amount("cost", "cost"),
    ]
    list_display_links = None
    list_filter = [DayFilter]
    linked_by = (CURSOR, "account__exact")
    list_select_related = ["account", "key"]
    fields = [*list_display, "price"]
    readonly_fields = fields
    when_empty = "A day is added when its first request is settled."
