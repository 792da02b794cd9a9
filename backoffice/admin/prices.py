"""Prices: every version of every model's price, and scheduling a new one."""

from datetime import datetime
from typing import Any

from django.conf import settings
from django.contrib import admin, messages
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.urls import reverse
from django.utils import timezone

from backoffice.admin.base import BackofficeAdmin, StateFilter, operator, prefilled
from backoffice.admin.formats import Column, column, datetime_column, money, number_column
from backoffice.forms.prices import PriceForm
from billing import price_book, pricing
from billing.models import ModelPrice
from gateway import providers


class PriceStateFilter(StateFilter):
    states = tuple(ModelPrice.State.values)


def price_columns(field: str, label: str) -> tuple[Column, Column]:
    """Return the columns of a price: per 1K tokens, and per 1M."""

    def per_1k(price: ModelPrice) -> str:
        return money(pricing.per_1k(getattr(price, field)))

    def per_1m(price: ModelPrice) -> str:
        return money(pricing.per_1m(getattr(price, field)))

    return (
        number_column(f"{field}_1k", f"{label} / 1K", per_1k),
        number_column(f"{field}_1m", f"{label} / 1M", per_1m),
    )


@admin.register(ModelPrice)
class ModelPriceAdmin(BackofficeAdmin):
    list_display = [
        "model",
        column("state", "state", lambda row: row.state),
        *price_columns("prompt_price", "input"),
        *price_columns("completion_price", "output"),
        datetime_column("effective_from", "from (UTC)"),
        column("by", "by", lambda row: row.author),
    ]
    list_filter = [PriceStateFilter]
    search_fields = ["model"]
    fields = [*list_display, datetime_column("created_at", "created")]
    readonly_fields = fields
    when_empty = "Run manage.py seed_prices, or schedule a price."

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        versions: Any = super().get_queryset(request)
        stated: QuerySet[Any] = versions.with_state(timezone.now())
        return stated

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def changelist_view(self, request: HttpRequest, extra_context: Any = None) -> HttpResponse:
        context = {**unpriced_models(timezone.now()), **(extra_context or {})}
        return super().changelist_view(request, context)

    def render_change_form(
        self, request: HttpRequest, context: dict[str, Any], *args: Any, **kwargs: Any
    ) -> HttpResponse:
        if row := kwargs.get("obj"):
            context["input_per_1k"] = f"{row.prompt_per_1k:f}"
            context["output_per_1k"] = f"{row.completion_per_1k:f}"
        return super().render_change_form(request, context, *args, **kwargs)

    def add_view(
        self, request: HttpRequest, form_url: str = "", extra_context: Any = None
    ) -> HttpResponse:
        self.require(request, "billing.add_modelprice")
        form = PriceForm(request.POST or None, initial=prefilled(PriceForm, request.GET))
        if form.is_valid() and (scheduled := self._schedule(request, form)):
            self.message_user(request, summary(scheduled), messages.SUCCESS)
            self._warn_if_not_installed(request, scheduled.model)
            return HttpResponseRedirect(reverse("admin:billing_modelprice_changelist"))
        return self.form_page(request, form, title="Schedule a price", submit="Schedule")

    def _warn_if_not_installed(self, request: HttpRequest, model: str) -> None:
        installed = providers.installed_models()
        if installed is not None and model not in installed:
            text = f"The model {model} is not installed at Ollama."
            self.message_user(request, text, messages.WARNING)

    def _schedule(self, request: HttpRequest, form: PriceForm) -> ModelPrice | None:
        now = timezone.now()
        start, by = form.cleaned_data["effective_from"] or now, operator(request)
        try:
            row = price_book.schedule(form.line(), effective_from=start, now=now, by=by)
        except pricing.InvalidPrice as error:
            form.add_error(None, str(error))
            return None
        self.log_addition(request, row, "Scheduled.")
        return row


def unpriced_models(now: datetime) -> dict[str, Any]:
    """Return the installed models, those without any price, and those whose first price starts
    later."""
    installed = providers.installed_models()
    names = installed or []
    priced_later = price_book.upcoming(names, now)
    priced = {*price_book.effective_prices(now, names), *priced_later}
    return {
        "installed": installed,
        "unpriced": [name for name in names if name not in priced],
        "priced_later": sorted(priced_later.items()),
    }


def summary(price: ModelPrice) -> str:
    """Return a new price and its start as a sentence. It must not begin with the name of the model:
    Django capitalizes the first letter of a message."""
    effective = price.effective_from <= timezone.now()
    when = "is effective now" if effective else f"starts at {price.effective_from:%F %R} UTC"
    units = (price.prompt_price, price.completion_price)
    per_1m = " / ".join(money(pricing.per_1m(unit)) for unit in units)
    return f"The price of {price.model}, {per_1m} {settings.CURRENCY} per 1,000,000 tokens, {when}."
