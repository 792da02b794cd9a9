"""Prices of models. `price_book.py` is the only writer."""

from datetime import datetime
from decimal import Decimal
from typing import Self

from django.conf import settings
from django.db import models
from django.db.models import Case, CharField, Exists, OuterRef, Q, Subquery, Value, When
from django.db.models.expressions import RawSQL

from billing import pricing


class ModelPriceQuerySet(models.QuerySet["ModelPrice"]):
    """`now` is a time, or an expression for the database's time (`clock.now`)."""

    def started(self, now: datetime | RawSQL) -> Self:
        """Return the versions whose start has passed: the effective ones and older ones."""
        return self.filter(effective_from__lte=now)

    def effective(self, now: datetime | RawSQL) -> Self:
        """Return each model's effective version: the newest that has started."""
        started = ModelPrice.objects.started(now).filter(model=OuterRef("model"))
        newest = started.order_by("-effective_from").values("pk")[:1]
        return self.started(now).filter(pk=Subquery(newest))

    def with_state(self, now: datetime | RawSQL) -> Self:
        """Annotate each version with `state`, a `ModelPrice.State`."""
        newer = ModelPrice.objects.started(now).filter(
            model=OuterRef("model"), effective_from__gt=OuterRef("effective_from")
        )
        state = Case(
            When(effective_from__gt=now, then=Value(ModelPrice.State.SCHEDULED.value)),
            When(Exists(newer), then=Value(ModelPrice.State.PAST.value)),
            default=Value(ModelPrice.State.EFFECTIVE.value),
            output_field=CharField(),
        )
        return self.annotate(state=state)


class ModelPrice(models.Model):
    """One version of a model's price, effective from its start until the next version's start."""

    class State(models.TextChoices):
        EFFECTIVE = "effective", "Effective"
        SCHEDULED = "scheduled", "Scheduled"
        PAST = "past", "Past"

    model = models.CharField(max_length=600, help_text="Canonical name, such as llama3:latest.")
    effective_from = models.DateTimeField()
    prompt_price = models.BigIntegerField(help_text="Smallest units per prompt token.")
    completion_price = models.BigIntegerField(help_text="Smallest units per completion token.")
    created_at = models.DateTimeField(auto_now_add=True)
    created_by = models.ForeignKey(
        settings.AUTH_USER_MODEL, null=True, blank=True, on_delete=models.PROTECT, related_name="+"
    )
    author = models.CharField(
        max_length=200, help_text="The operator's name at that time, or the user of the command."
    )

    objects = ModelPriceQuerySet.as_manager()

    class Meta:
        db_table = "model_prices"
        ordering = ["model", "-effective_from"]
        constraints = [
            models.UniqueConstraint(
                fields=["model", "effective_from"], name="one_price_per_model_and_start"
            ),
            models.CheckConstraint(
                condition=Q(prompt_price__gte=0, completion_price__gte=0),
                name="prices_not_negative",
            ),
        ]

    def __str__(self) -> str:
        per_1k = f"{self.prompt_per_1k:f} / {self.completion_per_1k:f}"
        return f"{self.model}: {per_1k} per 1K from {self.effective_from:%F %R}"

    @property
    def rates(self) -> pricing.Rates:
        return pricing.Rates(self.prompt_price, self.completion_price)

    @property
    def prompt_per_1k(self) -> Decimal:
        return pricing.per_1k(self.prompt_price)

    @property
    def completion_per_1k(self) -> Decimal:
        return pricing.per_1k(self.completion_price)
