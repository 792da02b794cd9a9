"""The checks of rows in `reconcile`: each usage row against its price, its hold and the roll-up.

Two tables are compared by NOT EXISTS, which both databases do in one pass. With NOT IN, PostgreSQL
reads one table again for each row of the other.
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

SUMMED = ("requests", "unbilled", "prompt_tokens", "completion_tokens", "cost")
GROUP = ("account_id", "day", "key_id", "model", "price_id")
# A model may read this many tokens more than were held: those of its own system prompt.
BEYOND_HOLD = 4096


def rollup_is_usage() -> Iterator[str]:
    """Every roll-up line equals its usage rows in every column, and none is missing or surplus."""
    billed = Q(billed=True)
    grouped = (
        TokenUsage.objects.order_by()
        .values(*GROUP)
        .annotate(
            requests=Count("pk", filter=Q(adjusts=None)),
            unbilled=Sum(Case(When(billed=False, then=Value(1)), default=Value(0))),
            sum_prompt=Coalesce(Sum("prompt_tokens", filter=billed), Value(0)),
            sum_completion=Coalesce(Sum("completion_tokens", filter=billed), Value(0)),
            sum_cost=ExactSum("cost"),
        )
    )
    expected = {_group(row): _sums(row) for row in grouped.iterator()}
    rolled = UsageDaily.objects.order_by().values(*GROUP, *SUMMED)
    stored = {_group(row): tuple(row[name] for name in SUMMED) for row in rolled.iterator()}
    for group in expected.keys() | stored.keys():
        if expected.get(group) != stored.get(group):
            yield f"roll-up {group}: has {stored.get(group)}, usage rows {expected.get(group)}"


def _group(row: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(row[name] for name in GROUP)


def _sums(row: dict[str, Any]) -> tuple[Any, ...]:
    sums = (row["sum_prompt"], row["sum_completion"], row["sum_cost"])
    return (row["requests"], row["unbilled"], *sums)


def cost_follows_from_row() -> Iterator[str]:
    """A usage row's cost is its tokens times its prices, or 0 if it is not billed."""
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
    """Every closed hold has one usage row, and every usage row has a closed hold.

    Adjustments are additional rows, which another check compares.
    """
    rows = TokenUsage.objects.order_by().filter(request_id=OuterRef("pk"))
    closed = Hold.objects.order_by().exclude(state=Hold.State.OPEN)
    for hold in closed.filter(~Exists(rows)).iterator():
        yield f"hold {hold.request_id}: {hold.state}, but has no usage row"
    firsts = TokenUsage.objects.order_by().filter(adjusts=None)
    for row in firsts.filter(~Exists(closed.filter(pk=OuterRef("request_id")))).iterator():
        yield f"usage row {row.request_id}: has no closed hold"


def adjustments_are_of_expired_rows() -> Iterator[str]:
    """A hold that expired while its request went on has one adjustment, and no other hold has."""
    adjusted = Hold.objects.order_by().filter(state=Hold.State.ADJUSTED)
    its_row = TokenUsage.objects.order_by().filter(adjusts=OuterRef("pk"))
    for hold in adjusted.filter(~Exists(its_row)).iterator():
        yield f"hold {hold.request_id}: adjusted, but has no usage row with the difference"
    first = TokenUsage.objects.order_by().filter(
        request_id=OuterRef("adjusts"), adjusts=None, outcome=Outcome.EXPIRED
    )
    its_hold = adjusted.filter(pk=OuterRef("adjusts"))
    for row in _adjustments().filter(~Exists(first) | ~Exists(its_hold)).iterator():
        yield f"usage row {row.request_id}: adjusts {row.adjusts}, which is no expired row"


def _its_hold() -> QuerySet[Hold]:
    return Hold.objects.order_by().filter(pk=Coalesce(OuterRef("adjusts"), OuterRef("request_id")))


def rows_match_their_holds() -> Iterator[str]:
    """A usage row names the account, key, price, model, operation and times of its hold."""
    names = ("account", "key", "price", "model", "operation")
    # A row starts no later than it ends, even if the clock was set back in between.
    same_start = Q(opened_at=OuterRef("started_at")) | Q(opened_at__gt=OuterRef("settled_at"))
    # An adjustment closes its hold again.
    same_end = Q(closed_at=OuterRef("settled_at")) | Q(state=Hold.State.ADJUSTED)
    same = _its_hold().filter(same_start, same_end, **{name: OuterRef(name) for name in names})
    for row in TokenUsage.objects.order_by().filter(~Exists(same)).iterator():
        yield f"usage row {row.request_id}: differs from its hold"
    for row in TokenUsage.objects.exclude(day=TruncDate("settled_at")).iterator():
        yield f"usage row {row.request_id}: dated {row.day}, but settled {row.settled_at:%F}"
    for line in UsageDaily.objects.order_by().exclude(key__account=F("account")).iterator():
        yield f"roll-up of account {line.account_id}: key {line.key_id} belongs to another account"


def rows_end_after_they_start() -> Iterator[str]:
    """No usage row has a negative duration."""
    for row in TokenUsage.objects.filter(settled_at__lt=F("started_at")).iterator():
        yield f"usage row {row.request_id}: settled {row.settled_at}, started {row.started_at}"


def rows_are_within_their_holds() -> Iterator[str]:
    """A usage row with counts of the model server uses no more than was held."""
    total = OuterRef("prompt_tokens") + OuterRef("completion_tokens")
    most = _its_hold().filter(tokens__gte=total - Value(BEYOND_HOLD))
    rows = TokenUsage.objects.order_by().filter(count_source=CountSource.UPSTREAM.value)
    for row in rows.filter(~Exists(most)).iterator():
        yield f"usage row {row.request_id}: {row.total_tokens} tokens, more than its hold"


def tables_are_guarded() -> Iterator[str]:
    """The triggers that guard append-only tables are there."""
    for name in append_only.missing(connection):
        yield f"trigger {name}: missing or disabled; run manage.py migrate"
