"""The cost in responses, in the ledger and in `/usage` is the same."""

from decimal import Decimal
from typing import Any

import pytest

from billing.models import TokenUsage
from tests.fakes.ollama import FakeOllama
from tests.harness.callers import Caller

pytestmark = pytest.mark.usefixtures("priced")

HELLO = [{"role": "user", "content": "hello there"}]

REQUESTS: list[tuple[str, dict[str, Any]]] = [
    ("/generate", {"model": "llama3", "prompt": "Why is the sky blue?"}),
    ("/generate", {"model": "LLAMA3:latest", "prompt": "again", "stream": True}),
    ("/chat", {"model": "mistral", "messages": HELLO}),
    ("/chat", {"model": "mistral", "messages": HELLO, "stream": True}),
    ("/embedding", {"model": "nomic-embed-text", "input": ["one", "two words"]}),
    ("/api/generate", {"model": "llama3", "prompt": "hi"}),
    ("/api/chat", {"model": "library/llama3", "messages": HELLO, "stream": False}),
    ("/api/embed", {"model": "nomic-embed-text", "input": "three little words"}),
    ("/api/embeddings", {"model": "nomic-embed-text", "prompt": "old style"}),
]


def usage_of(caller: Caller, path: str, body: dict[str, Any]) -> dict[str, Any]:
    """Send a request and return the `usage` of its response."""
    import json

    response = caller.post(path, body)
    content = b"".join(response.streaming_content) if response.streaming else response.content
    usage: dict[str, Any] = json.loads(content.splitlines()[-1])["usage"]
    return usage


@pytest.fixture
def usages(alice: Caller, ollama: FakeOllama) -> list[dict[str, Any]]:
    """The `usage` of one response of every kind."""
    return [usage_of(alice, path, body) for path, body in REQUESTS]


def test_a_response_has_its_usage_and_cost(alice: Caller, ollama: FakeOllama) -> None:
    answer = alice.post("/generate", model="llama3", prompt="Why is the sky blue?").json()

    assert answer["response"].startswith("The sky is blue")
    assert answer["usage"] == {
        "prompt_tokens": 5,
        "completion_tokens": 9,
        "total_tokens": 14,
        "cost": "0.000046",
        "currency": "USD",
    }


def test_usage_is_the_sum_of_the_responses(alice: Caller, usages: list[dict[str, Any]]) -> None:
    usage = alice.get("/usage").json()

    for count in ("prompt_tokens", "completion_tokens", "total_tokens"):
        assert usage[count] == sum(each[count] for each in usages)
    assert Decimal(usage["cost"]) == sum(Decimal(each["cost"]) for each in usages)
    assert usage["requests"] == len(REQUESTS) and usage["billed_amount_usd"] == usage["cost"]


@pytest.mark.parametrize("group", ["day", "model", "key"])
def test_history_has_the_same_sum_in_any_grouping(
    alice: Caller, usages: list[dict[str, Any]], group: str
) -> None:
    history = alice.get("/usage/history", group_by=group).json()

    total = sum(Decimal(each["cost"]) for each in usages)
    assert sum(Decimal(line["cost"]) for line in history["history"]) == total
    assert Decimal(history["total"]["cost"]) == total
    tokens = sum(each["total_tokens"] for each in usages)
    assert sum(line["tokens"] for line in history["history"]) == tokens


def test_all_spellings_of_a_model_are_one_line(alice: Caller, usages: list[dict[str, Any]]) -> None:
    by_model = alice.get("/usage").json()["by_model"]

    names = {"llama3:latest", "mistral:latest", "nomic-embed-text:latest"}
    assert {line["model"] for line in by_model} == names


def test_the_wallet_is_charged_exactly_the_sum(alice: Caller, usages: list[dict[str, Any]]) -> None:
    [wallet] = alice.get("/usage").json()["budgets"]

    total = sum(Decimal(each["cost"]) for each in usages)
    assert Decimal(wallet["spent"]) == total and wallet["held"] == "0"
    assert Decimal(wallet["left"]) == 25 - total


def test_members_share_the_usage_and_other_accounts_see_none_of_it(
    alice: Caller, bob: Caller, charlie: Caller, ollama: FakeOllama
) -> None:
    bob.post("/generate", model="llama3", prompt="hi")

    assert alice.get("/usage").json()["requests"] == 1
    assert charlie.get("/usage").json()["requests"] == 0
    [line] = alice.get("/usage/history", group_by="key").json()["history"]
    assert line["name"] == "Bob's key"


def test_every_request_id_is_on_its_usage_row(alice: Caller, ollama: FakeOllama) -> None:
    response = alice.post("/generate", model="llama3", prompt="hi")

    assert str(TokenUsage.objects.get().request_id) == response["x-request-id"]


def test_a_history_has_every_day_newest_first(alice: Caller) -> None:
    history = alice.get("/usage/history", **{"from": "2026-02-27", "to": "2026-03-02"}).json()

    days = [line["date"] for line in history["history"]]
    assert days == ["2026-03-02", "2026-03-01", "2026-02-28", "2026-02-27"]
    assert all(line["tokens"] == 0 and line["cost"] == "0" for line in history["history"])


@pytest.mark.parametrize(
    "query",
    [
        {"from": "yesterday"},
        {"from": "2026-02-30"},
        {"from": "2026-03-01", "to": "2026-02-01"},
        {"from": "2020-01-01", "to": "2026-01-01"},
        {"to": "0001-01-01"},
        {"from": "9999-12-31", "to": "9999-12-31"},
        {"group_by": "digest"},
        {"from": "2026-01-01\x00"},
    ],
    ids=str,
)
def test_an_invalid_history_query_is_a_400(alice: Caller, query: dict[str, str]) -> None:
    response = alice.get("/usage/history", **query)

    assert response.status_code == 400 and response.json()["code"] == "invalid_request"


def test_a_history_may_end_on_the_earliest_day(alice: Caller) -> None:
    assert alice.get("/usage/history", to="2000-01-01").status_code == 200
