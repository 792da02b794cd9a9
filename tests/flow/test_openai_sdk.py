"""The official `openai` client works unchanged: another base URL, a key, nothing else."""

import base64
import json
import time
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import openai
import pytest
from pydantic import BaseModel

from billing import ledger
from billing.models import Budget, TokenUsage
from billing.money import from_units
from tests.fakes.behaviour import WORDS, vector
from tests.fakes.script import Close, Line, Sleep, Stall, error_line, reply, tokens
from tests.gateway.test_images import encoded, png
from tests.harness.callers import Caller, new_caller, set_price
from tests.harness.gateway import RunningGateway, eventually, gateway_env, usage_row
from tests.servers.client import RawClient
from tests.servers.gunicorn import Gunicorn

pytestmark = pytest.mark.usefixtures("priced")

SKY = "".join(WORDS)
HELLO: list[Any] = [{"role": "user", "content": "hello there"}]
TOOL: Any = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Today's weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
        "strict": True,
    },
}
CALL = {"id": "call_abc12345", "function": {"name": "weather", "arguments": {"city": "Kiel"}}}


@pytest.fixture
def client(gateway: RunningGateway, alice: Caller) -> Iterator[openai.OpenAI]:
    with client_of(gateway, alice.secret) as found:
        yield found


def client_of(gateway: RunningGateway, secret: str, **more: Any) -> openai.OpenAI:
    return openai.OpenAI(
        base_url=f"{gateway.server.url}/v1", api_key=secret, **{"max_retries": 0, **more}
    )


def chat_script(pieces: Any = ("ab",), **more: Any) -> Any:
    return tokens(pieces, path="/api/chat", **more)


def sent(gateway: RunningGateway) -> Any:
    """What the model server was asked last."""
    return gateway.ollama.requests[-1].json


# --- Chat -----------------------------------------------------------------------------------------


def test_a_chat(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="llama3", messages=HELLO)

    [choice] = answer.choices
    assert (choice.message.role, choice.message.content) == ("assistant", SKY)
    assert (choice.finish_reason, choice.index, answer.model) == ("stop", 0, "llama3")
    assert answer.id.startswith("chatcmpl-") and abs(answer.created - time.time()) < 60
    row = usage_row()
    assert answer.usage and answer.usage.model_dump(exclude_none=True) == {
        "prompt_tokens": row.prompt_tokens,
        "completion_tokens": row.completion_tokens,
        "total_tokens": row.prompt_tokens + row.completion_tokens,
        "cost": f"{row.cost:f}",
        "currency": "USD",
    }


def test_every_answer_says_which_request_it_answers_and_how_long_it_took(
    client: openai.OpenAI,
) -> None:
    raw = client.chat.completions.with_raw_response.create(model="llama3", messages=HELLO)

    assert raw.headers["x-request-id"] == str(usage_row().request_id)
    assert int(raw.headers["openai-processing-ms"]) >= 0


def test_a_streamed_chat(client: openai.OpenAI) -> None:
    chunks = list(client.chat.completions.create(model="llama3", messages=HELLO, stream=True))

    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == SKY
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [chunk.choices[0].finish_reason for chunk in chunks][-2:] == [None, "stop"]
    assert len({(chunk.id, chunk.created, chunk.model) for chunk in chunks}) == 1
    assert not any(chunk.usage for chunk in chunks)


def test_the_usage_comes_last_and_alone_when_asked_for(client: openai.OpenAI) -> None:
    *chunks, last = client.chat.completions.create(
        model="llama3", messages=HELLO, stream=True, stream_options={"include_usage": True}
    )

    assert last.choices == [] and last.usage and last.usage.total_tokens == 2 + len(WORDS)
    assert all(chunk.usage is None and "usage" in chunk.model_fields_set for chunk in chunks)


def test_the_streaming_helper_gathers_the_answer(client: openai.OpenAI) -> None:
    with client.chat.completions.stream(model="llama3", messages=HELLO) as stream:
        kinds = {event.type for event in stream}
        final = stream.get_final_completion()

    assert final.choices[0].message.content == SKY and "content.delta" in kinds


def test_tools_go_there_and_back(client: openai.OpenAI, gateway: RunningGateway) -> None:
    gateway.ollama.answer("/api/chat", chat_script((), tool_calls=[CALL]), times=1)
    asked = client.chat.completions.create(
        model="llama3", messages=HELLO, tools=[TOOL], tool_choice="auto"
    ).choices[0]
    calls = asked.message.tool_calls or []
    result: Any = {"role": "tool", "tool_call_id": calls[0].id, "content": "rain"}

    turns: list[Any] = [*HELLO, asked.message, result]
    answer = client.chat.completions.create(model="llama3", messages=turns, tools=[TOOL])

    assert (asked.finish_reason, asked.message.content) == ("tool_calls", None)
    assert [(c.id, c.function.name) for c in calls] == [(CALL["id"], "weather")]  # type: ignore[union-attr]
    assert json.loads(calls[0].function.arguments) == {"city": "Kiel"}  # type: ignore[union-attr]
    assert answer.choices[0].message.content
    _, called, told = sent(gateway)["messages"]
    assert called == {"role": "assistant", "content": "", "tool_calls": [CALL]}
    assert told["tool_name"] == "weather" and told["tool_call_id"] == CALL["id"]
    assert "strict" not in sent(gateway)["tools"][0]["function"]


def test_streamed_tool_calls_have_an_index_and_ids_of_their_own(
    client: openai.OpenAI, gateway: RunningGateway
) -> None:
    nameless = {"function": {"name": "weather", "arguments": {"city": "Kiel"}}}
    gateway.ollama.answer("/api/chat", chat_script(["Hm"], tool_calls=[nameless, nameless]))

    with client.chat.completions.stream(model="llama3", messages=HELLO, tools=[TOOL]) as stream:
        final = stream.get_final_completion().choices[0]

    calls = final.message.tool_calls or []
    assert final.finish_reason == "tool_calls" and final.message.content == "Hm"
    assert len(calls) == len({call.id for call in calls}) == 2
    assert all(json.loads(call.function.arguments) == {"city": "Kiel"} for call in calls)


class Age(BaseModel):
    age: int


def test_a_schema_is_followed_and_parsed(client: openai.OpenAI, gateway: RunningGateway) -> None:
    gateway.ollama.answer("/api/chat", chat_script(['{"age"', ":5}"]))

    answer = client.chat.completions.parse(model="llama3", messages=HELLO, response_format=Age)

    assert answer.choices[0].message.parsed == Age(age=5)
    assert sent(gateway)["format"]["properties"]["age"]["type"] == "integer"


def test_any_json_may_be_asked_for(client: openai.OpenAI, gateway: RunningGateway) -> None:
    client.chat.completions.create(
        model="llama3", messages=HELLO, response_format={"type": "json_object"}
    )

    assert sent(gateway)["format"] == "json"


def test_images_are_passed_on_as_base64(client: openai.OpenAI, gateway: RunningGateway) -> None:
    image = encoded(png(1, 1))
    parts = [
        {"type": "text", "text": "What is this?"},
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{image}"}},
    ]

    client.chat.completions.create(
        model="llama3",
        messages=[{"role": "user", "content": parts}],  # type: ignore[misc, list-item]
    )

    [message] = sent(gateway)["messages"]
    assert message == {"role": "user", "content": "What is this?", "images": [image]}


@pytest.mark.parametrize("limit", ["max_tokens", "max_completion_tokens"])
def test_sampling_and_limits_reach_the_model(
    client: openai.OpenAI, gateway: RunningGateway, limit: str
) -> None:
    sampling: Any = {
        "temperature": 0.5,
        "top_p": 0.9,
        "seed": 7,
        "presence_penalty": 1.0,
        "frequency_penalty": -1.0,
        "stop": ["\n"],
    }

    asked = sampling | {limit: 3}
    answer = client.chat.completions.create(model="llama3", messages=HELLO, **asked)

    assert sent(gateway)["options"] == {**sampling, "num_predict": 3}
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage and answer.usage.completion_tokens == 3


@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
def test_probabilities_of_tokens(
    client: openai.OpenAI, gateway: RunningGateway, stream: bool
) -> None:
    top = {"token": "é", "logprob": -0.1}
    entry = {"token": "é", "logprob": -0.1, "bytes": [195, 169], "top_logprobs": [top]}
    line = {"message": {"role": "assistant", "content": "é"}, "done": False, "logprobs": [entry]}
    gateway.ollama.answer("/api/chat", lines(line), chat_script(()))

    answer: Any = client.chat.completions.create(
        model="llama3", messages=HELLO, logprobs=True, top_logprobs=1, stream=stream
    )
    found = [c.choices[0].logprobs for c in (answer if stream else [answer])]

    [token] = [token for one in found if one for token in one.content]
    assert (token.token, token.logprob, token.bytes) == ("é", -0.1, [195, 169])
    assert token.top_logprobs[0].bytes == [195, 169]
    assert (sent(gateway)["logprobs"], sent(gateway)["top_logprobs"]) == (True, 1)


def lines(*objects: Any) -> list[Any]:
    return [Line(one) for one in objects]


@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
def test_thinking_is_told_apart(
    client: openai.OpenAI, gateway: RunningGateway, stream: bool
) -> None:
    gateway.ollama.answer("/api/chat", chat_script(["42"], thinking=["I ", "count"]))

    answer: Any = client.chat.completions.create(
        model="llama3", messages=HELLO, reasoning_effort="low", stream=stream
    )
    said = [c.choices[0].delta if stream else c.choices[0].message for c in as_list(answer)]

    for name in ("reasoning", "reasoning_content"):
        assert "".join(getattr(one, name, None) or "" for one in said) == "I count"
    assert "".join(one.content or "" for one in said) == "42"
    assert sent(gateway)["think"] == "low"


def as_list(answer: Any) -> list[Any]:
    return list(answer) if isinstance(answer, openai.Stream) else [answer]


def test_unknown_parameters_are_dropped(client: openai.OpenAI, gateway: RunningGateway) -> None:
    client.chat.completions.create(
        model="llama3",
        messages=HELLO,
        user="u",
        service_tier="auto",
        extra_body={"num_ctx": 1, "keep_alive": -1, "nonsense": {"a": 1}},
    )

    assert set(sent(gateway)) == {"model", "stream", "messages", "options"}
    assert set(sent(gateway)["options"]) == {"num_predict"}


# --- Completions, embeddings, models --------------------------------------------------------------


def test_a_completion_whole_and_streamed(client: openai.OpenAI) -> None:
    whole = client.completions.create(model="llama3", prompt="Why?")
    chunks = list(
        client.completions.create(
            model="llama3", prompt="Why?", stream=True, stream_options={"include_usage": True}
        )
    )

    assert (whole.choices[0].text, whole.choices[0].finish_reason) == (SKY, "stop")
    assert "".join(chunk.choices[0].text for chunk in chunks[:-1]) == SKY
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert chunks[-1].choices == [] and chunks[-1].usage == whole.usage
    assert whole.object == chunks[0].object == "text_completion"


@pytest.mark.parametrize("encoding", [None, "base64", "float"])
def test_embeddings(client: openai.OpenAI, gateway: RunningGateway, encoding: Any) -> None:
    asked = {} if encoding is None else {"encoding_format": encoding}

    answer = client.embeddings.create(
        model="nomic-embed-text", input=["one", "two"], dimensions=8, **asked
    )

    vectors = [one.embedding for one in answer.data]
    if encoding == "base64":
        assert len(base64.b64decode(str(vectors[0]))) == 4 * 8
    else:
        assert vectors == [pytest.approx(vector("one")), pytest.approx(vector("two"))]
    assert [one.index for one in answer.data] == [0, 1]
    assert answer.usage.prompt_tokens == answer.usage.total_tokens == 2
    assert sent(gateway)["dimensions"] == 8


def test_models_are_listed_and_found_by_any_spelling(client: openai.OpenAI) -> None:
    listed = {model.id: model for model in client.models.list()}

    assert set(listed) == {"llama3:latest", "mistral:latest", "nomic-embed-text:latest"}
    assert client.models.retrieve("LLaMA3") == listed["llama3:latest"]
    assert listed["llama3:latest"].owned_by == "library" and listed["llama3:latest"].created
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("nonsuch")


# --- Responses ------------------------------------------------------------------------------------


def test_a_response(client: openai.OpenAI, gateway: RunningGateway) -> None:
    answer = client.responses.create(
        model="llama3", input="hello there", instructions="Be brief.", metadata={"a": "b"}
    )

    assert (answer.output_text, answer.status, answer.error) == (SKY, "completed", None)
    assert answer.output[0].type == "message" and answer.output[0].status == "completed"
    assert answer.usage and answer.usage.total_tokens == 4 + len(WORDS)
    assert (answer.instructions, answer.metadata) == ("Be brief.", {"a": "b"})
    assert answer.to_dict()["store"] is False
    assert [m["role"] for m in sent(gateway)["messages"]] == ["system", "user"]


def test_a_streamed_response_counts_its_events_and_ends_whole(client: openai.OpenAI) -> None:
    events = list(client.responses.create(model="llama3", input="hello there", stream=True))

    assert [event.sequence_number for event in events] == list(range(len(events)))
    kinds = [event.type for event in events]
    assert kinds[:4] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
    ]
    assert kinds[4:-4] == ["response.output_text.delta"] * len(WORDS)
    assert kinds[-4:] == [
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    final: Any = events[-1]
    assert final.response.output_text == SKY and final.response.usage.output_tokens == len(WORDS)


def test_the_response_helper_gathers_thought_text_and_calls(
    client: openai.OpenAI, gateway: RunningGateway
) -> None:
    gateway.ollama.answer("/api/chat", chat_script("ab", thinking="xy", tool_calls=[CALL]))
    tool: Any = {"type": "function", **TOOL["function"]}

    with client.responses.stream(model="llama3", input="hi", tools=[tool]) as stream:
        list(stream)
        final = stream.get_final_response()

    thought, said, called = final.output
    assert thought.type == "reasoning" and thought.summary[0].text == "xy"
    assert said.type == "message" and final.output_text == "ab"
    assert called.type == "function_call" and called.call_id == CALL["id"]
    assert json.loads(called.arguments) == {"city": "Kiel"}
    assert len({thought.id, said.id, called.id}) == 3
    assert sent(gateway)["tools"][0]["function"]["name"] == "weather"


def test_a_response_is_taken_up_by_its_items(
    client: openai.OpenAI, gateway: RunningGateway
) -> None:
    gateway.ollama.answer(
        "/api/chat",
        chat_script(["Hm"], thinking="x", tool_calls=[CALL, CALL | {"id": "b"}]),
        times=1,
    )
    first = client.responses.create(model="llama3", input="hi")
    results = [
        {"type": "function_call_output", "call_id": CALL["id"], "output": "rain"},
        {
            "type": "function_call_output",
            "call_id": "b",
            "output": [{"type": "input_text", "text": "sun"}],
        },
    ]
    asked: Any = [{"role": "user", "content": "hi"}, *first.output, *results]

    client.responses.create(model="llama3", input=asked)

    _user, assistant, rain, sun = sent(gateway)["messages"]
    assert assistant["content"] == "Hm" and len(assistant["tool_calls"]) == 2
    assert (rain["content"], rain["tool_name"], sun["content"]) == ("rain", "weather", "sun")


def test_a_response_cut_by_its_length_is_incomplete(client: openai.OpenAI) -> None:
    whole = client.responses.create(model="llama3", input="hi", max_output_tokens=3)
    *_, last = client.responses.create(model="llama3", input="hi", max_output_tokens=3, stream=True)

    assert last.type == "response.incomplete"
    for answer in (whole, last.response):
        assert answer.status == "incomplete" and answer.output[0].status == "incomplete"  # type: ignore[union-attr]
        assert answer.incomplete_details and answer.incomplete_details.reason == "max_output_tokens"


def test_a_response_follows_a_schema(client: openai.OpenAI, gateway: RunningGateway) -> None:
    gateway.ollama.answer("/api/chat", chat_script(['{"age":5}']))

    answer = client.responses.parse(
        model="llama3", input="hi", text_format=Age, reasoning={"effort": "none"}
    )

    assert answer.output_parsed == Age(age=5)
    assert sent(gateway)["format"]["required"] == ["age"] and sent(gateway)["think"] is False


# --- Errors ---------------------------------------------------------------------------------------


def test_a_bad_key_is_an_authentication_error(gateway: RunningGateway) -> None:
    with pytest.raises(openai.AuthenticationError) as caught:
        client_of(gateway, "olg_" + "0" * 64).models.list()
    assert caught.value.code == "invalid_api_key" and caught.value.request_id


def test_a_model_out_of_reach_is_a_permission_error(gateway: RunningGateway, alice: Caller) -> None:
    alice.key.allowed_models = ["mistral"]
    alice.key.save()

    with pytest.raises(openai.PermissionDeniedError):
        chat(client_of(gateway, alice.secret))


def chat(client: openai.OpenAI, **more: Any) -> Any:
    return client.chat.completions.create(**{"model": "llama3", "messages": HELLO, **more})


def test_an_unknown_model_is_a_not_found_error(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError):
        chat(client, model="nonsuch")


def test_a_bad_request_names_its_parameter(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        chat(client, temperature="hot")
    assert caught.value.param == "temperature" and caught.value.type == "invalid_request_error"


def test_no_credit_is_a_402_and_is_not_tried_again(gateway: RunningGateway) -> None:
    poor = new_caller("Poor", credit="0")

    with pytest.raises(openai.APIStatusError) as caught:
        chat(client_of(gateway, poor.secret, max_retries=2))

    assert caught.value.status_code == 402 and caught.value.type == "insufficient_quota"
    assert caught.value.response.headers["x-should-retry"] == "false"


def test_a_cap_is_a_rate_limit_error_and_is_not_tried_again(
    gateway: RunningGateway, alice: Caller
) -> None:
    unit, window = Budget.Unit.TOKENS, Budget.Window.MONTH
    cap = ledger.open_budget(alice.account, unit, window)
    ledger.set_limit(cap, 1)

    with pytest.raises(openai.RateLimitError) as caught:
        chat(client_of(gateway, alice.secret, max_retries=2))

    assert caught.value.code == "cap_reached"
    assert caught.value.response.headers["x-should-retry"] == "false"
    assert caught.value.response.request.headers["x-stainless-retry-count"] == "0"


def test_a_dead_model_server_is_an_internal_server_error(
    client: openai.OpenAI, gateway: RunningGateway
) -> None:
    gateway.ollama.down()

    with pytest.raises(openai.InternalServerError) as caught:
        chat(client)
    assert caught.value.status_code == 503 and caught.value.response.headers["retry-after"]


def test_a_model_server_that_failed_is_asked_again(gateway: RunningGateway, alice: Caller) -> None:
    gateway.ollama.answer("/api/chat", reply({"error": "runner has terminated"}, 500), times=1)
    impatient = client_of(gateway, alice.secret, max_retries=1)

    assert chat(impatient).choices[0].message.content == SKY
    assert len(gateway.ollama.calls("/api/chat")) == 2


BREAKS = {"a crash": [error_line("unexpected EOF")], "a closed connection": [Close()]}


@pytest.mark.parametrize("ending", BREAKS.values(), ids=BREAKS.keys())
def test_a_stream_that_breaks_raises(
    client: openai.OpenAI, gateway: RunningGateway, ending: list[Any]
) -> None:
    gateway.ollama.answer("/api/chat", chat_script("ab", done=False), ending)
    gateway.ollama.answer("/api/generate", tokens("ab", done=False), ending)
    streams = [
        chat(client, stream=True),
        client.completions.create(model="llama3", prompt="hi", stream=True),
        client.responses.create(model="llama3", input="hi", stream=True),
    ]

    for stream in streams:
        with pytest.raises(openai.APIError) as caught:
            list(stream)
        assert caught.value.code == "upstream_broke"
    eventually(lambda: TokenUsage.objects.count() == 3)
    assert not TokenUsage.objects.filter(billed=True).exists()


# --- Leaving --------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["chat", "completions", "responses"])
def test_leaving_a_stream_stops_the_model_server_within_a_second(
    client: openai.OpenAI, gateway: RunningGateway, family: str
) -> None:
    for path in ("/api/chat", "/api/generate"):
        gateway.ollama.answer(path, tokens("abc", path=path, done=False), Stall())
    asks: dict[str, Any] = {
        "chat": lambda: chat(client, stream=True),
        "completions": lambda: client.completions.create(model="llama3", prompt="x", stream=True),
        "responses": lambda: client.responses.create(model="llama3", input="x", stream=True),
    }
    stream = asks[family]()
    next(stream)
    time.sleep(0.1)

    stream.close()

    assert gateway.ollama.requests[-1].left.wait(1)
    row = usage_row()
    assert (row.outcome, row.billed) == ("client_left", True) and row.cost > Decimal(0)


# --- IdleTimeout ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def lively(running: RunningGateway) -> Iterator[Gunicorn]:
    """The same gateway, which gives a sign of life after a tenth of a second."""
    with Gunicorn({**running.env, "KEEP_ALIVE_SECONDS": "0.1"}) as server:
        yield server


def test_a_client_waits_through_signs_of_life(
    gateway: RunningGateway, lively: Gunicorn, alice: Caller
) -> None:
    gateway.ollama.answer("/api/chat", Sleep(0.4), chat_script("ab", pause=0.3))
    client = openai.OpenAI(base_url=f"{lively.url}/v1", api_key=alice.secret)

    pieces = list(chat(client, stream=True))
    with client.responses.stream(model="llama3", input="hi") as stream:
        final = stream.get_final_response()

    assert "".join(piece.choices[0].delta.content or "" for piece in pieces) == "ab"
    assert final.output_text == "ab"


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/responses"])
def test_who_leaves_a_silent_stream_stops_the_model_server(
    gateway: RunningGateway, lively: Gunicorn, alice: Caller, path: str
) -> None:
    gateway.ollama.answer("/api/chat", Stall())
    asked = {"messages": HELLO} if "chat" in path else {"input": "hello there"}
    with RawClient(lively.url) as client:
        client.post(path, {"model": "llama3", "stream": True, **asked}, key=alice.secret)
        assert client.read_head().status == 200 and client.read_line() == b": keep-alive"

    assert gateway.ollama.requests[-1].left.wait(1)
    row = usage_row()
    assert (row.outcome, row.billed, row.cost) == ("client_left", False, Decimal(0))


# --- A real model ---------------------------------------------------------------------------------

MODEL = "smollm2:135m"
EMBED = "smollm2-embed:135m"


@pytest.fixture(scope="module")
def real_gateway(django_db_setup: None) -> Iterator[Gunicorn]:
    """A gateway in front of the embedded engine."""
    pytest.importorskip("xllamacpp", reason="the embedded engine's wheels are not installed")
    from embedded.server import EmbeddedServer

    with EmbeddedServer(port=0, parallel=2) as engine:
        env = gateway_env(engine)  # type: ignore[arg-type]
        with Gunicorn(env) as server:
            yield server


@pytest.fixture
def real(real_gateway: Gunicorn, transactional_db: None, alice: Caller) -> Iterator[openai.OpenAI]:
    set_price(MODEL, "0.0001", "0.0002")
    set_price(EMBED, "0.0001")
    with openai.OpenAI(base_url=f"{real_gateway.url}/v1", api_key=alice.secret) as found:
        yield found


def test_a_real_model_chats_writes_and_embeds(real: openai.OpenAI) -> None:
    same: Any = {"model": MODEL, "temperature": 0, "seed": 1}
    chat = real.chat.completions.create(**same, messages=HELLO, max_completion_tokens=12)
    chunks = list(
        real.chat.completions.create(
            **same,
            messages=HELLO,
            max_completion_tokens=12,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    text = real.completions.create(**same, prompt="Once upon a time", max_tokens=8)
    vectors = real.embeddings.create(model=EMBED, input=["one", "two"]).data

    streamed = "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1])
    assert chat.choices[0].message.content == streamed and streamed.strip()
    assert chunks[-1].usage == chat.usage and text.choices[0].text.strip()
    assert len(vectors) == 2 and len(vectors[0].embedding) > 100
    spent = sum(row.cost for row in TokenUsage.objects.all())
    assert spent == from_units(Budget.objects.get(unit="money").spent) > 0


def test_a_real_model_responds_and_follows_a_schema(real: openai.OpenAI) -> None:
    asked: Any = {"model": MODEL, "input": "My age is five.", "temperature": 0}

    followed = real.responses.parse(**asked, text_format=Age, max_output_tokens=40)
    with real.responses.stream(**asked, max_output_tokens=8) as stream:
        events = list(stream)

    assert isinstance(followed.output_parsed, Age)
    deltas = "".join(e.delta for e in events if e.type == "response.output_text.delta")
    last: Any = events[-1]
    assert last.type in ("response.incomplete", "response.completed")
    assert deltas == last.response.output_text and last.response.usage.output_tokens <= 8


def test_a_real_model_that_lacks_an_ability_says_so(real: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="does not support tools"):
        real.chat.completions.create(model=MODEL, messages=HELLO, tools=[TOOL])
