"""Every outcome has the same meaning and the same cost in every API."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from billing import reconciliation
from billing.models import Hold, TokenUsage
from tests.fakes.ollama import FakeOllama
from tests.fakes.script import Step, error_line, reply, tokens
from tests.faults.conftest import looks_complete
from tests.harness.callers import Caller

pytestmark = pytest.mark.usefixtures("priced")

SAID = [{"role": "user", "content": "hello there"}]
SCHEMA = {"type": "object", "properties": {"a": {"type": "string"}}}
# What the model server says of a prompt that is too long, and of a schema, as it says it.
TOO_LONG = json.dumps(
    {
        "error": {
            "code": 400,
            "message": "request (5010 tokens) exceeds the available context size (4096 tokens)",
            "type": "exceed_context_size_error",
            "n_prompt_tokens": 5010,
            "n_ctx": 4096,
        }
    }
)
NO_GRAMMAR = json.dumps({"error": {"code": 400, "message": "JSON schema conversion failed: x"}})


@dataclass(frozen=True)
class Family:
    """A route, its request, and how its response shows truncation."""

    path: str
    request: dict[str, Any]
    cut: str
    upstream: str = "/api/chat"
    schema: dict[str, Any] = field(default_factory=dict)


FORMAT = {"format": SCHEMA}
OPENAI_FORMAT = {"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA}}
RESPONSE_FORMAT = {"format": {"type": "json_schema", "name": "a", "schema": SCHEMA}}
ANTHROPIC_FORMAT = {"format": {"type": "json_schema", "schema": SCHEMA}}
PROMPT = {"prompt": "hello there"}
LENGTH = '"length"'
FAMILIES = {
    "rest generate": Family("/generate", PROMPT, LENGTH, "/api/generate", FORMAT),
    "rest chat": Family("/chat", {"messages": SAID}, LENGTH, schema=FORMAT),
    "ollama generate": Family("/api/generate", PROMPT, LENGTH, "/api/generate", FORMAT),
    "ollama chat": Family("/api/chat", {"messages": SAID}, LENGTH, schema=FORMAT),
    "openai chat": Family(
        "/v1/chat/completions",
        {"messages": SAID},
        LENGTH,
        schema={"response_format": OPENAI_FORMAT},
    ),
    "openai completions": Family("/v1/completions", PROMPT, LENGTH, "/api/generate"),
    "openai responses": Family(
        "/v1/responses", {"input": "hello there"}, '"incomplete"', schema={"text": RESPONSE_FORMAT}
    ),
    "anthropic": Family(
        "/v1/messages",
        {"messages": SAID, "max_tokens": 2048},
        '"max_tokens"',
        schema={"output_config": ANTHROPIC_FORMAT},
    ),
}
every_family = pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
both_ways = pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])


@pytest.fixture(autouse=True)
def ledger_balances(db: None) -> Iterator[None]:
    yield
    assert not Hold.objects.filter(state="open").exists()
    assert not any(rows for _check, rows in reconciliation.differences())


def ask(alice: Caller, family: Family, *, stream: bool, **more: Any) -> tuple[int, bytes]:
    fields = {"model": "llama3", "stream": stream, **family.request, **more}
    response = alice.post(family.path, fields)
    body = b"".join(response.streaming_content) if response.streaming else response.content
    return response.status_code, body


def script(family: Family, pieces: list[str], *end: Step, **facts: Any) -> list[Any]:
    return [tokens(pieces, path=family.upstream, done=not end, **facts), *end]


def row() -> TokenUsage:
    return TokenUsage.objects.get()


def estimate(family: Family) -> int:
    """Return the estimated prompt tokens: bytes / 4, and the template."""
    return 13 if family.upstream == "/api/generate" else 17


# --- Ends that a prompt can cause -----------------------------------------------------------------


@every_family
@both_ways
def test_a_response_that_repeats_itself_ends_with_length(
    alice: Caller, ollama: FakeOllama, family: Family, stream: bool
) -> None:
    ollama.answer(family.upstream, tokens(["go "] * 31, path=family.upstream, done=False))

    status, body = ask(alice, family, stream=stream)

    assert status == 200 and body.count(b"go ") >= (31 if stream else 1)
    assert family.cut in body.decode().replace(" ", "")
    if stream and family.cut != '"incomplete"':
        assert looks_complete(body)
    assert (row().outcome, row().billed, row().count_source) == ("complete", True, "counted")
    assert (row().prompt_tokens, row().completion_tokens) == (estimate(family), 31)


@every_family
@both_ways
@pytest.mark.parametrize("error", [NO_GRAMMAR, 'tool "x" is not declared', "something new"])
def test_an_invalid_request_in_mid_stream_is_billed_for_the_delivered_part(
    alice: Caller, ollama: FakeOllama, family: Family, stream: bool, error: str
) -> None:
    ollama.answer(family.upstream, script(family, ["x"] * 80, error_line(error)))

    status, body = ask(alice, family, stream=stream)

    assert status == (200 if stream else 400), "what a client repeats at once must not be a 5xx"
    assert b"invalid_request" in body and error.encode() not in body
    assert not looks_complete(body)
    assert (row().outcome, row().billed) == ("invalid_request", stream)
    assert (row().prompt_tokens, row().completion_tokens) == (estimate(family), 80)


@every_family
@both_ways
def test_a_schema_that_fails_after_the_reasoning_is_billed_for_the_reasoning(
    alice: Caller, ollama: FakeOllama, family: Family, stream: bool
) -> None:
    thinking = ["hm"] * 50
    ollama.answer(family.upstream, script(family, [], error_line(NO_GRAMMAR), thinking=thinking))

    status, body = ask(alice, family, stream=stream)

    assert status == (200 if stream else 400) and b"JSON schema" in body
    assert (row().outcome, row().billed) == ("invalid_request", stream)
    assert row().completion_tokens == 50


@every_family
@both_ways
def test_a_crash_of_the_model_server_is_free_below_64_tokens(
    alice: Caller, ollama: FakeOllama, family: Family, stream: bool
) -> None:
    crash = "an error was encountered while running the model: unexpected EOF"
    ollama.answer(family.upstream, script(family, ["x"] * 63, error_line(crash)), times=1)
    ollama.answer(family.upstream, script(family, ["x"] * 64, error_line(crash)), times=1)

    for _ in range(2):
        status, body = ask(alice, family, stream=stream)
        assert status == (200 if stream else 502) and not looks_complete(body)

    rows = TokenUsage.objects.order_by("completion_tokens")
    assert [row.outcome for row in rows] == ["upstream_broke"] * 2
    assert [row.billed for row in rows] == [False, stream]


@every_family
@both_ways
def test_a_prompt_longer_than_the_context_is_rejected_with_its_size(
    alice: Caller, ollama: FakeOllama, family: Family, stream: bool
) -> None:
    ollama.answer(family.upstream, reply({"error": TOO_LONG}, 400))

    status, body = ask(alice, family, stream=stream)

    assert status == 400
    assert b"The prompt has 5,010 tokens, the context of this model is 4,096." in body
    assert (row().outcome, row().billed) == ("invalid_request", False)


@both_ways
@pytest.mark.parametrize("family", [f for f in FAMILIES.values() if f.schema], ids=lambda f: f.path)
def test_reasoning_is_billed_although_upstream_counts_the_second_run_only(
    alice: Caller, ollama: FakeOllama, family: Family, stream: bool
) -> None:
    facts = {"thinking": ["hm"] * 60, "prompt": 200, "count": 4}
    ollama.answer(family.upstream, script(family, ["a", "b", "c", "d"], **facts))

    status, _ = ask(alice, family, stream=stream, **family.schema)

    assert status == 200
    assert (row().outcome, row().count_source) == ("complete", "counted")
    assert (row().prompt_tokens, row().completion_tokens) == (140, 64)


# --- The same costs the same ----------------------------------------------------------------------

ENDS: dict[str, list[Step]] = {
    "the repeat guard": [],
    "a client fault": [error_line("something new")],
    "a crash": [error_line("unexpected EOF")],
}


@pytest.mark.parametrize("end", ENDS.values(), ids=ENDS)
def test_an_outcome_costs_the_same_in_every_api(
    alice: Caller, ollama: FakeOllama, end: list[Step]
) -> None:
    costs: dict[str, set[Any]] = {"/api/generate": set(), "/api/chat": set()}
    for family in FAMILIES.values():
        steps = tokens(["x"] * 100, path=family.upstream, done=False)
        ollama.answer(family.upstream, steps, end, times=1)
        ask(alice, family, stream=True)
        newest = TokenUsage.objects.order_by("-pk")[0]
        costs[family.upstream].add((newest.cost, newest.outcome, newest.completion_tokens))

    assert [len(amounts) for amounts in costs.values()] == [1, 1]
    assert all(cost > 0 for amounts in costs.values() for cost, *_ in amounts)
