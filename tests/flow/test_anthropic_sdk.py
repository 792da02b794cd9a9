"""The official `anthropic` client works unchanged: another address, a key, nothing else."""

import asyncio
import json
import time
from collections.abc import Callable, Iterator
from decimal import Decimal
from typing import Any

import anthropic
import pydantic
import pytest

from billing import ledger, reconciliation
from billing.models import Budget, TokenUsage
from tests.fakes.ollama import FakeOllama
from tests.fakes.script import Reset, Sleep, Stall, error_line, reply, tokens
from tests.gateway.test_anthropic import PNG, events
from tests.harness.callers import Caller, new_caller, set_price
from tests.harness.gateway import DEADLINES, RunningGateway, database_url, gateway_env, usage_row
from tests.servers.gunicorn import Gunicorn

pytestmark = pytest.mark.usefixtures("priced")

PATH = "/api/chat"
HELLO = [{"role": "user", "content": "hello there"}]
ASKED: dict[str, Any] = {"model": "llama3", "max_tokens": 64, "messages": HELLO}
WEATHER = {
    "name": "weather",
    "description": "Today's weather",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}},
}
CALL = {"function": {"name": "weather", "arguments": {"city": "Kiel"}}}
KEEP_ALIVE = 0.2
# Small enough to test what is too large, and too late.
TIGHT = {
    "KEEP_ALIVE_SECONDS": str(KEEP_ALIVE),
    "UPSTREAM_FIRST_LINE_SECONDS": "1.5",
    "UPSTREAM_SILENCE_SECONDS": "2",
    "MAX_BODY_BYTES": "100000",
}


@pytest.fixture(scope="module")
def running(django_db_setup: None, django_db_blocker: Any) -> Iterator[RunningGateway]:
    """A gateway for all tests of this file, that soon loses patience."""
    with FakeOllama() as ollama:
        env = gateway_env(ollama, **(DEADLINES | TIGHT))
        with Gunicorn(env) as server:
            yield RunningGateway(server, ollama, env)


@pytest.fixture
def client(gateway: RunningGateway, alice: Caller) -> anthropic.Anthropic:
    return client_of(gateway, alice.secret)


def client_of(gateway: RunningGateway, secret: str) -> anthropic.Anthropic:
    return anthropic.Anthropic(api_key=secret, base_url=gateway.server.url, max_retries=0)


def text_of(message: Any) -> str:
    return "".join(block.text for block in message.content if block.type == "text")


# --- Answers --------------------------------------------------------------------------------------


def test_create(client: anthropic.Anthropic) -> None:
    answer = client.messages.create(**ASKED)

    assert text_of(answer).startswith("The sky") and answer.stop_reason == "end_turn"
    assert (answer.usage.input_tokens, answer.usage.output_tokens) == (2, 9)
    row = usage_row()
    assert answer.id == f"msg_{row.request_id.hex}" and answer._request_id == str(row.request_id)


def test_the_usage_of_an_answer_is_its_usage_row(client: anthropic.Anthropic) -> None:
    usage = client.messages.create(**ASKED).usage

    row = usage_row()
    told = (usage.input_tokens, usage.output_tokens)
    assert told == (row.prompt_tokens, row.completion_tokens)
    assert Decimal(usage.cost) == row.cost > 0 and usage.currency == "USD"


def test_a_stream_gathers_text_and_ends_with_upstreams_counts(
    client: anthropic.Anthropic, gateway: RunningGateway
) -> None:
    gateway.ollama.answer(PATH, tokens(["Hel", "lo", " Kiel"], path=PATH, prompt=7, count=33))

    with client.messages.stream(**ASKED) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()

    assert text == text_of(final) == "Hello Kiel"
    assert (final.usage.input_tokens, final.usage.output_tokens) == (7, 33)
    assert final.stop_reason == "end_turn"
    assert (usage_row().prompt_tokens, usage_row().completion_tokens) == (7, 33)


def test_a_raw_stream_ends_with_its_cost(client: anthropic.Anthropic) -> None:
    *_, delta, stop = client.messages.create(**ASKED, stream=True)

    assert stop.type == "message_stop" and delta.type == "message_delta"
    assert Decimal(delta.usage.cost) == usage_row().cost > 0


def test_the_asynchronous_client_streams_too(gateway: RunningGateway, alice: Caller) -> None:
    async def ask() -> str:
        url = gateway.server.url
        client = anthropic.AsyncAnthropic(api_key=alice.secret, base_url=url, max_retries=0)
        async with client, client.messages.stream(**ASKED) as stream:
            return text_of(await stream.get_final_message())

    assert asyncio.run(ask()).startswith("The sky")


def test_the_beta_client_and_a_bearer_token_work_too(
    gateway: RunningGateway, alice: Caller
) -> None:
    client = anthropic.Anthropic(
        auth_token=alice.secret, base_url=gateway.server.url, max_retries=0
    )

    answer = client.beta.messages.create(**ASKED, betas=["interleaved-thinking-2025-05-14"])
    assert text_of(answer).startswith("The sky")


# --- What is asked --------------------------------------------------------------------------------


def test_a_system_prompt_stops_and_sampling_reach_the_model(
    client: anthropic.Anthropic, gateway: RunningGateway
) -> None:
    client.messages.create(
        **ASKED,
        system=[{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}],
        stop_sequences=["END"],
        metadata={"user_id": "u"},
        # This version of the client has no arguments for them; others have.
        extra_body={"temperature": 0.2, "top_k": 40, "top_p": 0.9},
    )

    sent = gateway.ollama.requests[-1].json
    assert sent["messages"] == [{"role": "system", "content": "Be brief."}, *HELLO]
    chosen = {"stop": ["END"], "temperature": 0.2, "top_k": 40, "top_p": 0.9, "num_predict": 64}
    assert sent["options"] == chosen


def test_an_answer_at_its_limit_says_so(client: anthropic.Anthropic) -> None:
    answer = client.messages.create(**ASKED | {"max_tokens": 3})

    assert (answer.stop_reason, answer.usage.output_tokens) == ("max_tokens", 3)


def test_images_reach_the_model(client: anthropic.Anthropic, gateway: RunningGateway) -> None:
    content = [{"type": "text", "text": "What?"}, {"type": "image", "source": PNG}]

    client.messages.create(**ASKED | {"messages": [{"role": "user", "content": content}]})

    [message] = gateway.ollama.requests[-1].json["messages"]
    assert message == {"role": "user", "content": "What?", "images": [PNG["data"]]}


@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
def test_thinking_comes_before_the_text(
    client: anthropic.Anthropic, gateway: RunningGateway, stream: bool
) -> None:
    gateway.ollama.answer(PATH, tokens(["Hi"], path=PATH, thinking=["I ", "greet"]))

    answer = ask(client, stream, thinking={"type": "enabled", "budget_tokens": 1024})

    thought, text = answer.content
    assert (thought.type, thought.thinking, thought.signature) == ("thinking", "I greet", "")
    assert text.text == "Hi" and gateway.ollama.requests[-1].json["think"] is True


def ask(client: anthropic.Anthropic, stream: bool, **more: Any) -> Any:
    if not stream:
        return client.messages.create(**ASKED | more)
    with client.messages.stream(**ASKED | more) as answer:
        return answer.get_final_message()


@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
def test_tools_go_round(client: anthropic.Anthropic, gateway: RunningGateway, stream: bool) -> None:
    called = tokens(["Let me see"], path=PATH, thinking=["Hm"], tool_calls=[CALL])
    gateway.ollama.answer(PATH, called, times=1)

    first = ask(client, stream, tools=[WEATHER])
    use = first.content[-1]
    result = {"type": "tool_result", "tool_use_id": use.id, "content": "rain"}
    turns = [
        *HELLO,
        {"role": "assistant", "content": first.content},
        {"role": "user", "content": [result, {"type": "text", "text": "So?"}]},
    ]
    ask(client, stream, tools=[WEATHER], messages=turns)

    assert first.stop_reason == "tool_use" and use.input == {"city": "Kiel"}
    _hello, assistant, tool, so = gateway.ollama.requests[-1].json["messages"]
    assert (assistant["content"], assistant["thinking"]) == ("Let me see", "Hm")
    function = {"name": "weather", "arguments": {"city": "Kiel"}}
    assert assistant["tool_calls"] == [{"id": use.id, "function": function}]
    about = {"role": "tool", "tool_call_id": use.id, "tool_name": "weather"}
    assert tool == {**about, "content": "rain"} and so["content"] == "So?"


class Number(pydantic.BaseModel):
    n: int


def test_an_answer_is_parsed_by_its_schema(
    client: anthropic.Anthropic, gateway: RunningGateway
) -> None:
    gateway.ollama.answer(PATH, tokens(['{"n":', "7}"], path=PATH))

    answer = client.messages.parse(**ASKED, output_format=Number)

    assert answer.parsed_output == Number(n=7)
    assert gateway.ollama.requests[-1].json["format"]["properties"]["n"]["type"] == "integer"


# --- Errors ---------------------------------------------------------------------------------------

Ask = Callable[[RunningGateway, Caller], Any]


def asking(**more: Any) -> Ask:
    return lambda gateway, caller: client_of(gateway, caller.secret).messages.create(**ASKED | more)


def with_answer(*script: Any) -> Ask:
    def ask(gateway: RunningGateway, caller: Caller) -> Any:
        gateway.ollama.answer(PATH, *script)
        return asking()(gateway, caller)

    return ask


def with_a_cap(gateway: RunningGateway, caller: Caller) -> Any:
    budget = ledger.open_budget(caller.account, Budget.Unit.TOKENS, Budget.Window.MONTH)
    ledger.set_limit(budget, 1)
    return asking()(gateway, caller)


def with_a_wrong_key(gateway: RunningGateway, _caller: Caller) -> Any:
    return client_of(gateway, "olg_" + "0" * 64).messages.create(**ASKED)


def without_credit(gateway: RunningGateway, _caller: Caller) -> Any:
    return asking()(gateway, new_caller("Paul", credit="0"))


def without_scope(gateway: RunningGateway, _caller: Caller) -> Any:
    return asking()(gateway, new_caller("Ursula", scopes=["usage"]))


def with_the_model_server_down(gateway: RunningGateway, caller: Caller) -> Any:
    gateway.ollama.down()
    return asking()(gateway, caller)


BUSY = reply({"error": "server busy"}, 503)
ERRORS: dict[str, tuple[Ask, type[anthropic.APIStatusError], str]] = {
    "no messages": (asking(messages=[]), anthropic.BadRequestError, "invalid_request_error"),
    "a forced call": (
        asking(tools=[WEATHER], tool_choice={"type": "any"}),
        anthropic.BadRequestError,
        "invalid_request_error",
    ),
    "a wrong key": (with_a_wrong_key, anthropic.AuthenticationError, "authentication_error"),
    "no credit": (without_credit, anthropic.APIStatusError, "billing_error"),
    "no scope": (without_scope, anthropic.PermissionDeniedError, "permission_error"),
    "no model": (asking(model="nonsuch"), anthropic.NotFoundError, "not_found_error"),
    "too large": (asking(system="x" * 100_000), anthropic.APIStatusError, "request_too_large"),
    "a cap": (with_a_cap, anthropic.RateLimitError, "rate_limit_error"),
    "broken": (with_answer(reply({"error": "x"}, 500)), anthropic.InternalServerError, "api_error"),
    "busy": (with_answer(BUSY), anthropic.InternalServerError, "overloaded_error"),
    "down": (with_the_model_server_down, anthropic.InternalServerError, "overloaded_error"),
    "late": (with_answer(Stall()), anthropic.InternalServerError, "timeout_error"),
}
STATUSES = {
    "invalid_request_error": 400,
    "authentication_error": 401,
    "billing_error": 402,
    "permission_error": 403,
    "not_found_error": 404,
    "request_too_large": 413,
    "rate_limit_error": 429,
    "api_error": 502,
    "overloaded_error": 503,
    "timeout_error": 504,
}


@pytest.mark.parametrize(("call", "kind", "name"), ERRORS.values(), ids=ERRORS)
def test_an_error_is_raised_as_its_class(
    gateway: RunningGateway,
    alice: Caller,
    call: Ask,
    kind: type[anthropic.APIStatusError],
    name: str,
) -> None:
    with pytest.raises(kind) as caught:
        call(gateway, alice)

    error = caught.value
    assert (error.type, error.status_code) == (name, STATUSES[name])
    assert error.error_code and error.body["request_id"] == error.request_id  # type: ignore[index]
    assert type(error) is not anthropic.APIStatusError, "the client knows a class of its own"


def test_tokens_cannot_be_counted_beforehand(client: anthropic.Anthropic) -> None:
    with pytest.raises(anthropic.NotFoundError):
        client.messages.count_tokens(model="llama3", messages=HELLO)  # type: ignore[arg-type]


# --- Streams that do not end well -----------------------------------------------------------------


@pytest.mark.parametrize("ending", [Reset(), error_line("CUDA error")], ids=["reset", "error line"])
def test_a_stream_that_breaks_raises(
    client: anthropic.Anthropic, gateway: RunningGateway, ending: Any
) -> None:
    gateway.ollama.answer(PATH, tokens("ab", path=PATH, done=False), ending)

    with pytest.raises(anthropic.APIStatusError) as caught, client.messages.stream(**ASKED) as s:
        s.get_final_message()

    assert caught.value.type == "api_error" and caught.value.error_code == "upstream_broke"
    assert (usage_row().outcome, usage_row().billed) == ("upstream_broke", False)


def test_leaving_a_stream_stops_the_model_server(
    client: anthropic.Anthropic, gateway: RunningGateway
) -> None:
    gateway.ollama.answer(PATH, tokens("ab", path=PATH, done=False), Stall())

    with client.messages.stream(**ASKED) as stream:
        assert next(iter(stream.text_stream)) == "a"

    assert gateway.ollama.requests[-1].left.wait(1)
    row = usage_row()
    assert (row.outcome, row.billed) == ("client_left", True) and 1 <= row.completion_tokens <= 2
    assert not any(found for _check, found in reconciliation.differences())


def test_leaving_a_silent_stream_stops_the_model_server(
    client: anthropic.Anthropic, gateway: RunningGateway
) -> None:
    gateway.ollama.answer(PATH, Stall())

    with client.messages.stream(**ASKED) as stream:
        assert next(iter(stream)).type == "message_start"

    assert gateway.ollama.requests[-1].left.wait(1)
    assert (usage_row().outcome, usage_row().billed) == ("client_left", False)


# --- IdleTimeout ----------------------------------------------------------------------------------


def test_a_silent_stream_pings_and_the_client_does_not_mind(
    client: anthropic.Anthropic, gateway: RunningGateway, alice: Caller
) -> None:
    gateway.ollama.answer(PATH, Sleep(0.8), tokens("ab", path=PATH, pause=0.6))

    with gateway.client() as raw:
        raw.post("/v1/messages", ASKED | {"stream": True}, key=alice.secret)
        began = time.monotonic()
        assert raw.read_head().headers["content-type"].startswith("text/event-stream")
        assert time.monotonic() - began < 0.75, "the answer begins before the model does"
        kinds = [event["type"] for event in events(raw.read_all())]

    assert kinds[:3] == ["message_start", "ping", "ping"] and kinds[-1] == "message_stop"
    first_words = kinds.index("content_block_delta")
    assert kinds[first_words:].count("ping") >= 2
    assert text_of(ask(client, stream=True)) == "ab"


def test_what_fails_after_a_silence_is_an_event_and_raises(
    client: anthropic.Anthropic, gateway: RunningGateway
) -> None:
    gateway.ollama.answer(PATH, Sleep(2 * KEEP_ALIVE), BUSY)

    with pytest.raises(anthropic.APIStatusError) as caught:
        ask(client, stream=True)

    assert caught.value.type == "overloaded_error"
    assert (usage_row().outcome, usage_row().billed) == ("upstream_refused", False)


# --- With a real model ----------------------------------------------------------------------------

MODEL = "smollm2:135m"


@pytest.fixture(scope="module")
def real(django_db_setup: None) -> Iterator[Gunicorn]:
    pytest.importorskip("xllamacpp", reason="the embedded engine's wheels are not installed")
    from django.conf import settings

    from embedded.server import EmbeddedServer

    with EmbeddedServer(port=0, parallel=2) as engine:
        env = {
            "DJANGO_SETTINGS_MODULE": "config.settings",
            "SECRET_KEY": settings.SECRET_KEY,
            "DATABASE_URL": database_url(),
            "OLLAMA_BASE": engine.url,
        }
        with Gunicorn(env) as server:
            yield server


@pytest.fixture
def speaker(real: Gunicorn, transactional_db: None, alice: Caller) -> anthropic.Anthropic:
    set_price(MODEL, "0.0001", "0.0002")
    return anthropic.Anthropic(api_key=alice.secret, base_url=real.url, max_retries=0)


def test_a_real_model_answers_whole_and_streamed(speaker: anthropic.Anthropic) -> None:
    asked = ASKED | {"model": MODEL, "max_tokens": 16, "system": "You are a poet."}

    whole = ask(speaker, False, **asked)
    streamed = ask(speaker, True, **asked)

    for answer in (whole, streamed):
        assert text_of(answer).strip() and answer.model == MODEL
        assert answer.usage.input_tokens > 0 and 0 < answer.usage.output_tokens <= 16
    told = [answer.usage.input_tokens + answer.usage.output_tokens for answer in (whole, streamed)]
    rows = TokenUsage.objects.all()
    assert sum(row.prompt_tokens + row.completion_tokens for row in rows) == sum(told)
    assert not any(found for _check, found in reconciliation.differences())


def test_a_real_model_follows_a_schema(speaker: anthropic.Anthropic) -> None:
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    wanted: Any = {"format": {"type": "json_schema", "schema": schema}}

    answer = ask(speaker, False, model=MODEL, output_config=wanted)

    assert isinstance(json.loads(text_of(answer))["n"], int)
