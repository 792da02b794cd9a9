"""`/usage` and `/usage/history`: what a customer has used, read from the roll-up only."""

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
from billing.models import ModelPrice
from billing.months import month_of
from billing.statements import Line, Totals
from gateway import providers

MAX_DAYS = 366
DEFAULT_DAYS = 30
GROUPS = ("day", "model", "key")


class UsageView(APIView):
    """This month's tokens and cost, also by model, the key's budgets, and the effective prices."""

    required_scope = Scope.USAGE

    def get(self, request: Request) -> HttpResponse:
        key: Any = request.auth
        now = clock.read()
        today = now.date()
        rows = statements.days_of(key.account, today.replace(day=1), today)
        totals = statements.total(rows)
        is_usable = providers.usable_models(request)
        effective = price_book.effective_prices(now)
        prices = {name: price for name, price in effective.items() if is_usable(name)}
        return JsonResponse(
            {
                "month": month_of(now),
                **totals_object(totals),
                # In CURRENCY, whatever the name says. Clients read `cost` and `currency`.
                "billed_amount_usd": decimal_text(totals.cost),
                "by_model": [
                    line_object("model", line) for line in statements.group_by(rows, "model")
                ],
                "budgets": [
                    with_decimal_texts(asdict(budget))
                    for budget in statements.budgets(key.account, key, month_of(now))
                ],
                # The input price alone, for clients of the first version.
                "pricing": {
                    name: decimal_text(price.prompt_per_1k) for name, price in prices.items()
                },
                "price_per_1k": {name: price_object(price) for name, price in prices.items()},
            }
        )


class HistoryView(APIView):
    """A range of days by day, model or key. `from` and `to` are inclusive."""

    required_scope = Scope.USAGE

    def get(self, request: Request) -> HttpResponse:
        key: Any = request.auth
        first, last = date_range(request, clock.read().date())
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
        return [line_object("model", line) for line in statements.group_by(rows, "model")]
    lines = statements.group_by(rows, "key_id")
    names = statements.key_names(account, [int(str(line.label)) for line in lines])
    return [
        {**line_object("key", line), "name": names.get(int(str(line.label)), "")} for line in lines
    ]


# --- Query ----------------------------------------------------------------------------------------


def date_range(request: Request, today: date) -> tuple[date, date]:
    """Return the first and the last day of the query; by default the last 30 days."""
    last = read_day(request, "to", today)
    first = read_day(request, "from", last - timedelta(days=DEFAULT_DAYS - 1))
    if first > last:
        raise ValidationError("'from' is after 'to'.")
    if (last - first).days >= MAX_DAYS:
        raise ValidationError(f"A history covers at most {MAX_DAYS} days.")
    return first, last


def read_day(request: Request, name: str, default: date) -> date:
    text = request.query_params.get(name)
    if text is None:
        return default
    try:
        day = date.fromisoformat(text)
    except ValueError:
        raise ValidationError(f"'{name}' takes a day such as 2026-01-31.") from None
    if not 2000 <= day.year <= 9000:
        raise ValidationError(f"'{name}' is out of range.")
    return day


# --- JSON -----------------------------------------------------------------------------------------


def totals_object(totals: Totals) -> dict[str, Any]:
    return {
        "requests": totals.requests,
        "unbilled_requests": totals.unbilled,
        "prompt_tokens": totals.prompt_tokens,
        "completion_tokens": totals.completion_tokens,
        "total_tokens": totals.total_tokens,
        "cost": decimal_text(totals.cost),
        "currency": settings.CURRENCY,
    }


def line_object(name: str, line: Line) -> dict[str, Any]:
    label = line.label.isoformat() if isinstance(line.label, date) else line.label
    return {name: label, "tokens": line.totals.total_tokens, **totals_object(line.totals)}


def price_object(price: ModelPrice) -> dict[str, str]:
    """Return both prices of 1,000 tokens, with the fields that `/models` uses."""
    return {
        "prompt": decimal_text(price.prompt_per_1k),
        "completion": decimal_text(price.completion_per_1k),
        "currency": settings.CURRENCY,
    }


def with_decimal_texts(fields: dict[str, Any]) -> dict[str, Any]:
    """Return fields for JSON: money as decimal strings, never as floats."""
    return {
        name: decimal_text(value) if isinstance(value, Decimal) else value
        for name, value in fields.items()
    }


def decimal_text(amount: Decimal) -> str:
    return f"{amount:f}"
