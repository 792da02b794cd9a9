"""What `reconcile` asks of rows: each usage row against its price, its hold and the roll-up.

Two tables are compared by NOT EXISTS, which both databases do in one pass. With NOT IN, PostgreSQL
reads the one table again for each row of the other.
"""

from collections.abc import Iterator
from typing import Any

from django.db import connection
from django.db.models import Case, Count, Exists, F, OuterRef, Q, QuerySet, Sum, Value, When
from django.db.models.functions import Coalesce, TruncDate

from billing import append_only
from billing.models import Hold, ModelPrice, TokenUsage, UsageDaily
from billing.money import ExactSum
from gateway.metering import CountSource, Outcome

ROLLED = ("requests", "unbilled", "prompt_tokens", "completion_tokens", "cost")
PLACE = ("account_id", "day", "key_id", "model", "price_id")
# How many tokens a model may read beyond what was held for: its own system prompt.
BEYOND_HOLD = 4096


def rollup_is_usage() -> Iterator[str]:
    """The roll-up is the usage rows grouped, in every column, in both directions."""
    billed = Q(billed=True)
    grouped = (
        TokenUsage.objects.order_by()
        .values(*PLACE)
        .annotate(
            requests=Count("pk", filter=Q(adjusts=None)),
            unbilled=Sum(Case(When(billed=False, then=Value(1)), default=Value(0))),
            sum_prompt=Coalesce(Sum("prompt_tokens", filter=billed), Value(0)),
            sum_completion=Coalesce(Sum("completion_tokens", filter=billed), Value(0)),
            sum_cost=ExactSum("cost"),
        )
    )
    expected = {_place(row): _sums(row) for row in grouped.iterator()}
    rolled = UsageDaily.objects.order_by().values(*PLACE, *ROLLED)
    found = {_place(row): tuple(row[name] for name in ROLLED) for row in rolled.iterator()}
    for place in expected.keys() | found.keys():
        if expected.get(place) != found.get(place):
            yield f"roll-up {place}: has {found.get(place)}, usage rows say {expected.get(place)}"


def _place(row: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(row[name] for name in PLACE)


def _sums(row: dict[str, Any]) -> tuple[Any, ...]:
    sums = (row["sum_prompt"], row["sum_completion"], row["sum_cost"])
    return (row["requests"], row["unbilled"], *sums)


def cost_follows_from_row() -> Iterator[str]:
    """A usage row's cost is its tokens times its prices, or nothing if it is not billed."""
    prompt = F("prompt_tokens") * F("prompt_price")
    completion = F("completion_tokens") * F("completion_price")
    wrong = Q(billed=False) & ~Q(cost=0) | Q(billed=True) & ~Q(cost=prompt + completion)
    for row in TokenUsage.objects.filter(wrong).iterator():
        yield f"usage row {row.request_id}: cost {row.cost} is not tokens times prices"


def row_has_its_versions_prices() -> Iterator[str]:
    """A usage row's prices are those of the price version it names."""
    names = ("prompt_price", "completion_price", "model")
    same = {name: OuterRef(name) for name in names}
    version = ModelPrice.objects.order_by().filter(pk=OuterRef("price_id"), **same)
    for row in TokenUsage.objects.order_by().filter(~Exists(version)).iterator():
        yield f"usage row {row.request_id}: prices differ from price version {row.price_id}"


def _adjustments() -> QuerySet[TokenUsage]:
    return TokenUsage.objects.order_by().filter(adjusts__isnull=False)


def ended_holds_have_rows() -> Iterator[str]:
    """Every hold that has ended has one usage row, and every usage row such a hold. Adjustments
    stand beside these."""
    rows = TokenUsage.objects.order_by().filter(request_id=OuterRef("pk"))
    ended = Hold.objects.order_by().exclude(state=Hold.State.OPEN)
    for hold in ended.filter(~Exists(rows)).iterator():
        yield f"hold {hold.request_id}: {hold.state}, but without a usage row"
    firsts = TokenUsage.objects.order_by().filter(adjusts=None)
    for row in firsts.filter(~Exists(ended.filter(pk=OuterRef("request_id")))).iterator():
        yield f"usage row {row.request_id}: without a hold that has ended"


def adjustments_are_of_expired_rows() -> Iterator[str]:
    """What was settled as expired though its answer ended later has one more row, and nothing else
    has."""
    adjusted = Hold.objects.order_by().filter(state=Hold.State.ADJUSTED)
    its_row = TokenUsage.objects.order_by().filter(adjusts=OuterRef("pk"))
    for hold in adjusted.filter(~Exists(its_row)).iterator():
        yield f"hold {hold.request_id}: its answer ended later, but no row has the difference"
    first = TokenUsage.objects.order_by().filter(
        request_id=OuterRef("adjusts"), adjusts=None, outcome=Outcome.EXPIRED
    )
    its_hold = adjusted.filter(pk=OuterRef("adjusts"))
    for row in _adjustments().filter(~Exists(first) | ~Exists(its_hold)).iterator():
        yield f"usage row {row.request_id}: adjusts {row.adjusts}, which did not end later"


def _its_hold() -> QuerySet[Hold]:
    return Hold.objects.order_by().filter(pk=Coalesce(OuterRef("adjusts"), OuterRef("request_id")))


def rows_are_of_their_holds() -> Iterator[str]:
    """A usage row names the account, key, price, model, operation and times of its hold."""
    names = ("account", "key", "price", "model", "operation")
    # A row begins no later than it ends, also where the clock was set back in between.
    began = Q(opened_at=OuterRef("started_at")) | Q(opened_at__gt=OuterRef("settled_at"))
    # A hold is closed again by its adjustment.
    ended = Q(closed_at=OuterRef("settled_at")) | Q(state=Hold.State.ADJUSTED)
    same = _its_hold().filter(began, ended, **{name: OuterRef(name) for name in names})
    for row in TokenUsage.objects.order_by().filter(~Exists(same)).iterator():
        yield f"usage row {row.request_id}: differs from its hold"
    for row in TokenUsage.objects.exclude(day=TruncDate("settled_at")).iterator():
        yield f"usage row {row.request_id}: dated {row.day}, but settled {row.settled_at:%F}"
    for line in UsageDaily.objects.order_by().exclude(key__account=F("account")).iterator():
        yield f"roll-up of account {line.account_id}: key {line.key_id} is of another account"


def rows_end_after_they_began() -> Iterator[str]:
    """No usage row has a negative duration."""
    for row in TokenUsage.objects.filter(settled_at__lt=F("started_at")).iterator():
        yield f"usage row {row.request_id}: settled {row.settled_at}, began {row.started_at}"


def rows_are_within_their_holds() -> Iterator[str]:
    """A usage row takes no more than was held for, or says who else counted."""
    total = OuterRef("prompt_tokens") + OuterRef("completion_tokens")
    most = _its_hold().filter(tokens__gte=total - Value(BEYOND_HOLD))
    rows = TokenUsage.objects.order_by().filter(count_source=CountSource.UPSTREAM.value)
    for row in rows.filter(~Exists(most)).iterator():
        yield f"usage row {row.request_id}: {row.total_tokens} tokens, more than its hold's"


def tables_are_guarded() -> Iterator[str]:
    """The database refuses to change what is append-only."""
    for name in append_only.missing(connection):
        yield f"trigger {name}: missing or switched off; run manage.py migrate"
