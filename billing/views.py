"""`/usage` and `/usage/history`: what a customer has used, from the roll-up alone."""

from dataclasses import asdict
from datetime import date, timedelta
from decimal import Decimal
from typing import Any

from django.conf import settings
from django.http import HttpResponse, JsonResponse
from rest_framework.exceptions import ValidationError
from rest_framework.request import Request
from rest_framework.views import APIView

from accounts.models import Account, Scope
from billing import clock, price_book, statements
from billing.months import month_of
from billing.statements import Line, Totals
from gateway import providers

MAX_DAYS = 366
DEFAULT_DAYS = 30
GROUPS = ("day", "model", "key")


class UsageView(APIView):
    """This month: tokens, cost, by model, what is left of every budget, effective prices."""

    required_scope = Scope.USAGE

    def get(self, request: Request) -> HttpResponse:
        key: Any = request.auth
        now = clock.read()
        today = now.date()
        rows = statements.days_of(key.account, today.replace(day=1), today)
        totals = statements.total(rows)
        budgets = statements.budgets(key.account, key, month_of(now))
        is_usable = providers.usable_models(request)
        return JsonResponse(
            {
                "month": month_of(now),
                **totals_object(totals),
                "billed_amount_usd": text(totals.cost),
                "by_model": [line_object("model", line) for line in statements.by(rows, "model")],
                "budgets": [plain(asdict(budget)) for budget in budgets],
                "pricing": {
                    name: text(price.prompt_per_1k)
                    for name, price in price_book.effective_prices(now).items()
                    if is_usable(name)
                },
            }
        )


class HistoryView(APIView):
    """A span of days, by day, model or key; `from` and `to` are both included."""

    required_scope = Scope.USAGE

    def get(self, request: Request) -> HttpResponse:
        key: Any = request.auth
        first, last = span(request, clock.read().date())
        group = request.query_params.get("group_by", "day")
        if group not in GROUPS:
            raise ValidationError(f"group_by takes one of {', '.join(GROUPS)}.")
        rows = statements.days_of(key.account, first, last)
        return JsonResponse(
            {
                "from": first.isoformat(),
                "to": last.isoformat(),
                "group_by": group,
                "total": totals_object(statements.total(rows)),
                "history": history(key.account, rows, group, first, last),
            }
        )


def history(account: Account, rows: Any, group: str, first: date, last: date) -> list[Any]:
    if group == "day":
        return [line_object("date", line) for line in statements.by_day(rows, first, last)]
    if group == "model":
        return [line_object("model", line) for line in statements.by(rows, "model")]
    lines = statements.by(rows, "key_id")
    names = statements.key_names(account, [int(str(line.label)) for line in lines])
    return [
        {**line_object("key", line), "name": names.get(int(str(line.label)), "")} for line in lines
    ]


def span(request: Request, today: date) -> tuple[date, date]:
    """Return the first and last day asked for; the last 30 days unless said."""
    last = day_of(request, "to", today)
    first = day_of(request, "from", last - timedelta(days=DEFAULT_DAYS - 1))
    if first > last:
        raise ValidationError("'from' is after 'to'.")
    if (last - first).days >= MAX_DAYS:
        raise ValidationError(f"A history covers at most {MAX_DAYS} days.")
    return first, last


def day_of(request: Request, name: str, default: date) -> date:
    given = request.query_params.get(name)
    if given is None:
        return default
    try:
        day = date.fromisoformat(given)
    except ValueError:
        raise ValidationError(f"'{name}' takes a day such as 2026-01-31.") from None
    if not 2000 <= day.year <= 9000:
        raise ValidationError(f"'{name}' is out of range.")
    return day


def totals_object(totals: Totals) -> dict[str, Any]:
    return {
        "requests": totals.requests,
        "unbilled_requests": totals.unbilled,
        "prompt_tokens": totals.prompt_tokens,
        "completion_tokens": totals.completion_tokens,
        "total_tokens": totals.total_tokens,
        "cost": text(totals.cost),
        "currency": settings.CURRENCY,
    }


def line_object(name: str, line: Line) -> dict[str, Any]:
    label = line.label.isoformat() if isinstance(line.label, date) else line.label
    return {name: label, "tokens": line.totals.total_tokens, **totals_object(line.totals)}


def plain(fields: dict[str, Any]) -> dict[str, Any]:
    """Return fields for JSON: money as decimal strings, never as floats."""
    return {
        name: text(value) if isinstance(value, Decimal) else value for name, value in fields.items()
    }


def text(amount: Decimal) -> str:
    return f"{amount:f}"
