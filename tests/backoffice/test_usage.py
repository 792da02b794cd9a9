"""Lists of tables that grow with every request: fast, read-only and without gaps."""

import re
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import pytest
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from backoffice.admin.keyset import first_request_id
from billing.models import Hold, ModelPrice, TokenUsage
from billing.money import from_units
from gateway.http.request_ids import uuid7
from tests.harness.backoffice import DAYS, HOLDS, USAGE, text_of
from tests.harness.callers import Caller

ROWS = 2000


def usage_row(caller: Caller, price: ModelPrice, at: datetime, outcome: str) -> TokenUsage:
    return TokenUsage(
        request_id=uuid7(int(at.timestamp() * 1000), uuid4().int & ((1 << 74) - 1)),
        account=caller.account,
        key=caller.key,
        price=price,
        model=price.model,
        operation="chat",
        prompt_tokens=5,
        completion_tokens=7,
        prompt_price=price.prompt_price,
        completion_price=price.completion_price,
        billed=True,
        cost=from_units(5 * price.prompt_price + 7 * price.completion_price),
        outcome=outcome,
        count_source="upstream",
        started_at=at,
        settled_at=at,
        day=at.date(),
    )


def hold_row(row: TokenUsage, state: str) -> Hold:
    same = ("request_id", "account", "key", "price", "model", "operation")
    return Hold(
        **{name: getattr(row, name) for name in same},
        amount=row.cost,
        tokens=20,
        prompt_estimate=5,
        state=state,
        opened_at=row.started_at,
        lease_until=row.started_at,
    )


@pytest.fixture
def many(alice: Caller, priced: ModelPrice) -> list[TokenUsage]:
    """Rows of three days. One in a thousand has a client that disconnected, and an open hold."""
    start = timezone.now().replace(hour=0, minute=0) - timedelta(days=2)
    pause = (timezone.now() - start) / ROWS
    outcomes = ["client_left", *["complete"] * 999]
    rows = [
        usage_row(alice, priced, start + number * pause, outcomes[number % 1000])
        for number in range(ROWS)
    ]
    TokenUsage.objects.bulk_create(rows)
    Hold.objects.bulk_create(
        hold_row(row, "settled" if row.outcome == "complete" else "open") for row in rows
    )
    return rows


def queries_of(client: Client, address: str) -> tuple[str, list[str]]:
    with CaptureQueriesContext(connection) as queries:
        page = text_of(client.get(address))
    about = ("token_usages", "billing_hold", "billing_usagedaily")
    statements = [query["sql"] for query in queries.captured_queries]
    assert len(statements) <= 4
    return page, [sql for sql in statements if any(table in sql for table in about)]


def rows_on(page: str) -> int:
    return len(re.findall(r'<tr><t[hd] class="field', page))


ADDRESSES = [
    USAGE,
    f"{USAGE}?day={{yesterday}}",
    f"{USAGE}?outcome__exact=client_left",
    f"{USAGE}?outcome__exact=client_left&day={{yesterday}}",
    f"{USAGE}?billed__exact=1&count_source__exact=upstream&operation=chat",
    f"{USAGE}?account__exact={{account}}",
    f"{USAGE}?pk__lt={{middle}}",
    f"{USAGE}?q={{id}}",
    f"{USAGE}?o=6.-7",
    HOLDS,
    f"{HOLDS}?state=open",
    f"{HOLDS}?state=settled",
    f"{HOLDS}?day={{yesterday}}",
    f"{HOLDS}?q={{id}}",
    DAYS,
    f"{DAYS}?account__exact={{account}}",
]


@pytest.mark.parametrize("address", ADDRESSES)
def test_a_page_runs_one_query_without_count_or_sort(
    admin_client: Client, many: list[TokenUsage], address: str
) -> None:
    row = many[ROWS // 2]
    yesterday = timezone.now().date() - timedelta(days=1)
    query = {"account": row.account_id, "middle": row.pk, "id": row.request_id}

    _page, statements = queries_of(admin_client, address.format(yesterday=yesterday, **query))

    assert len(statements) == 1
    assert "COUNT(" not in statements[0]
    assert "LIMIT 51" in statements[0]
    if connection.vendor == "sqlite":
        assert "TEMP B-TREE" not in (plan := plan_of(statements[0]))
        assert address in (USAGE, f"{USAGE}?o=6.-7", HOLDS, DAYS) or "USING" in plan


def plan_of(sql: str) -> str:
    """Return how SQLite finds the rows of the page's own table."""
    with connection.cursor() as cursor:
        cursor.execute(f"EXPLAIN QUERY PLAN {sql}")
        steps = [str(step[3]) for step in cursor.fetchall()]
    return "; ".join(step for step in steps if "accounts_" not in step)


@pytest.mark.parametrize("list_of", [USAGE, HOLDS])
def test_pages_follow_each_other_without_gaps(
    admin_client: Client, many: list[TokenUsage], list_of: str
) -> None:
    seen: list[str] = []
    query = "?"
    while True:
        page = text_of(admin_client.get(f"{list_of}{query}"))
        seen += re.findall(r"/(\d+|[0-9a-f-]{36})/change/", page)
        older = re.search(r'href="(\?[^"]+)">Older', page)
        if older is None:
            break
        query = older[1].replace("&amp;", "&")

    assert len(seen) == len(set(seen)) == ROWS


def test_filters_default_to_today(admin_client: Client, many: list[TokenUsage]) -> None:
    day = many[0].day

    assert rows_on(text_of(admin_client.get(f"{USAGE}?outcome__exact=client_left"))) == 0
    assert rows_on(text_of(admin_client.get(f"{USAGE}?outcome__exact=client_left&day={day}"))) == 1


def test_open_holds_of_any_age_are_listed(admin_client: Client, many: list[TokenUsage]) -> None:
    assert rows_on(text_of(admin_client.get(f"{HOLDS}?state=open"))) == 2


def test_a_request_is_found_by_its_id_despite_other_filters(
    admin_client: Client, many: list[TokenUsage]
) -> None:
    request_id = many[0].request_id

    for query in (f"?q={request_id}", f"?q=+{str(request_id).upper()}+&outcome__exact=client_left"):
        assert rows_on(text_of(admin_client.get(f"{USAGE}{query}"))) == 1
    assert rows_on(text_of(admin_client.get(f"{HOLDS}?q={request_id}"))) == 1


@pytest.mark.parametrize("query", ["abc", "%00", "0190b8a2-7c3e-7d4a-9f10", "☃", "1' OR '1'='1"])
def test_an_invalid_request_id_finds_nothing_and_is_explained(
    admin_client: Client, alice: Caller, query: str
) -> None:
    page = text_of(admin_client.get(USAGE, {"q": query}))

    assert "A request id looks like" in page or "Null characters" in page
    assert rows_on(page) == 0


@pytest.mark.parametrize("day", ["x", "2026-99-01", "0001-01-01", "9999-12-31", ""])
@pytest.mark.parametrize("address", [USAGE, HOLDS, DAYS])
def test_an_invalid_day_is_not_an_error(admin_client: Client, address: str, day: str) -> None:
    assert admin_client.get(address, {"day": day}).status_code == 200


@pytest.mark.parametrize("address", [USAGE, HOLDS])
def test_an_invalid_page_leads_back_to_the_list(admin_client: Client, address: str) -> None:
    assert admin_client.get(f"{address}?pk__lt=x", follow=True).status_code == 200
    assert admin_client.get(f"{address}?p=99999").status_code == 200


def test_usage_and_holds_are_read_only(admin_client: Client, many: list[TokenUsage]) -> None:
    row = many[0]
    for address in (f"{USAGE}{row.pk}/", f"{HOLDS}{row.request_id}/"):
        page = text_of(admin_client.get(f"{address}change/"))
        assert 'name="_save"' not in page and str(row.request_id) in page
        assert admin_client.post(f"{address}change/", {"cost": "0"}).status_code == 403
        assert admin_client.post(f"{address}delete/", {"post": "yes"}).status_code == 403
    for address in (USAGE, HOLDS, DAYS):
        assert admin_client.get(f"{address}add/").status_code == 403


def test_a_request_id_begins_with_its_day() -> None:
    day = datetime(2026, 1, 31, tzinfo=UTC)
    milliseconds = int(day.timestamp() * 1000)

    assert (
        uuid7(milliseconds - 1, (1 << 74) - 1)
        < first_request_id(day.date())
        < uuid7(milliseconds, 0)
    )
    assert isinstance(first_request_id(day.date()), UUID)
