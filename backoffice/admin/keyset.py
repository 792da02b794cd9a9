"""Lists of tables that grow with every request: a page takes as long with 100 million rows as with
ten.

Nothing is counted, rows come in the order of the primary key, and the next page starts below the
last row of this one (keyset pagination) instead of skipping the rows before it.
"""

import contextlib
from collections.abc import Iterator, Mapping
from datetime import UTC, date, datetime, timedelta
from typing import Any
from uuid import UUID

from django.contrib import admin, messages
from django.contrib.admin.views.main import SEARCH_VAR, ChangeList
from django.core.paginator import Paginator
from django.db.models import QuerySet
from django.http import HttpRequest
from django.utils import timezone

from backoffice.admin.base import ReadOnlyAdmin

CURSOR = "pk__lt"


class KeysetChangeList(ChangeList):
    """Pages by a cursor. `next_page` is the query of the next page, None on the last one."""

    next_page: str | None = None
    is_first_page = True

    def get_ordering(self, request: HttpRequest, queryset: QuerySet[Any]) -> list[Any]:
        # The URL cannot change it: any other order sorts the whole table.
        return ["-pk"]

    def get_queryset(self, request: HttpRequest, exclude_parameters: Any = None) -> QuerySet[Any]:
        rows = super().get_queryset(request, exclude_parameters)
        # The links of filters are made from these parameters and must lead to a first page.
        self.is_first_page = self.filter_params.pop(CURSOR, None) is None
        self.params.pop(CURSOR, None)
        return rows

    def get_results(self, request: HttpRequest) -> None:
        rows = list(self.queryset[: self.list_per_page + 1])
        self.result_list: Any = rows[: self.list_per_page]
        if len(rows) > self.list_per_page:
            self.next_page = self.get_query_string({CURSOR: str(self.result_list[-1].pk)})
        self.result_count = self.full_result_count = len(self.result_list)
        self.show_full_result_count = self.show_admin_actions = False
        self.can_show_all = self.multi_page = False
        self.paginator: Any = Paginator(self.result_list, self.list_per_page)


class DayFilter(admin.SimpleListFilter):
    """One day (UTC). With certain other filters it defaults to today: without a day, a rare value
    would be searched for in the whole table."""

    title = "day (UTC)"
    parameter_name = "day"
    template = "backoffice/day_filter.html"

    def __init__(self, request: HttpRequest, params: Any, model: Any, model_admin: Any) -> None:
        self.today = timezone.now().date()
        self.filters_of_one_day = model_admin.filters_of_one_day
        self.needs_a_day = model_admin.needs_a_day(request.GET)
        self.kept = [(name, value) for name, value in request.GET.items() if name != "day"]
        super().__init__(request, params, model, model_admin)

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        days = [self.today - timedelta(days=back) for back in range(7)]
        names = ["Today", "Yesterday", *(f"{day:%A}" for day in days[2:])]
        return [(day.isoformat(), name) for day, name in zip(days, names, strict=True)]

    def value(self) -> str | None:
        return super().value() or (self.today.isoformat() if self.needs_a_day else None)

    def choices(self, changelist: Any) -> Iterator[Any]:
        any_day, *days = super().choices(changelist)
        removed = [self.parameter_name, *self.filters_of_one_day]
        query = changelist.get_query_string(remove=removed)
        yield {**any_day, "display": "Newest first", "query_string": query}
        yield from days

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        text = self.value()
        return queryset if text is None else self.of_day(queryset, self._read(request, text))

    def of_day(self, queryset: QuerySet[Any], day: date) -> QuerySet[Any]:
        return queryset.filter(day=day)

    def _read(self, request: HttpRequest, text: str) -> date:
        with contextlib.suppress(ValueError):
            day = date.fromisoformat(text)
            if 2000 <= day.year <= 9000:
                return day
        messages.warning(request, "Write a day as 2026-01-31. The list shows today instead.")
        return self.today


class RequestDayFilter(DayFilter):
    """The day of a request, from its id: a UUIDv7 begins with the time in milliseconds."""

    def of_day(self, queryset: QuerySet[Any], day: date) -> QuerySet[Any]:
        first, next_first = first_request_id(day), first_request_id(day + timedelta(days=1))
        return queryset.filter(request_id__gte=first, request_id__lt=next_first)


def first_request_id(day: date) -> UUID:
    """Return the smallest UUIDv7 of a day."""
    midnight = datetime(day.year, day.month, day.day, tzinfo=UTC)
    return UUID(int=int(midnight.timestamp() * 1000) << 80)


class KeysetAdmin(ReadOnlyAdmin):
    """A read-only list of a table that grows with every request."""

    show_full_result_count = False
    sortable_by = ()
    ordering = ["-pk"]
    linked_by: tuple[str, ...] = (CURSOR,)
    # Parameters of filters that would search the whole table unless a day is chosen.
    filters_of_one_day: tuple[str, ...] = ()

    def needs_a_day(self, query: Mapping[str, str]) -> bool:
        return not query.get(SEARCH_VAR) and any(name in query for name in self.filters_of_one_day)

    def get_changelist(self, request: HttpRequest, **kwargs: Any) -> type[ChangeList]:
        return KeysetChangeList


class RequestAdmin(KeysetAdmin):
    """Rows of single requests, found by the request id of the response."""

    search_fields = ["request_id"]
    search_help_text = "The whole request id, as in the response header x-request-id."

    def get_search_results(
        self, request: HttpRequest, queryset: QuerySet[Any], search_term: str
    ) -> tuple[QuerySet[Any], bool]:
        if not search_term.strip():
            return queryset, False
        try:
            request_id = UUID(search_term.strip())
        except ValueError:
            text = "A request id looks like 0190b8a2-7c3e-7d4a-9f10-2b3c4d5e6f70."
            self.message_user(request, text, messages.WARNING)
            return queryset.none(), False
        return queryset.filter(request_id=request_id), False
