"""Chat completions with the `openai` client."""

import json
import time
from typing import Any

import openai
import pytest

from tests.fakes.behaviour import WORDS
from tests.fakes.script import Line
from tests.flow.openai_sdk.calls import (
    CALL,
    HELLO,
    SKY,
    TOOL,
    Age,
    chat_script,
    sent_body,
)
from tests.harness.gateway import RunningGateway, usage_row
from tests.harness.images import encoded, png

pytestmark = pytest.mark.usefixtures("priced")


def test_a_chat_completion(client: openai.OpenAI) -> None:
    response = client.chat.completions.create(model="llama3", messages=HELLO)

    [choice] = response.choices
    assert (choice.message.role, choice.message.content) == ("assistant", SKY)
    assert (choice.finish_reason, choice.index, response.model) == ("stop", 0, "llama3")
    assert response.id.startswith("chatcmpl-") and abs(response.created - time.time()) < 60
    row = usage_row()
    assert response.usage and response.usage.model_dump(exclude_none=True) == {
        "prompt_tokens": row.prompt_tokens,
        "completion_tokens": row.completion_tokens,
        "total_tokens": row.prompt_tokens + row.completion_tokens,
        "cost": f"{row.cost:f}",
        "currency": "USD",
    }


def test_a_response_has_its_request_id_and_its_duration(
    client: openai.OpenAI,
) -> None:
    raw = client.chat.completions.with_raw_response.create(model="llama3", messages=HELLO)

    assert raw.headers["x-request-id"] == str(usage_row().request_id)
    assert int(raw.headers["openai-processing-ms"]) >= 0


def test_a_streamed_chat_completion(client: openai.OpenAI) -> None:
    chunks = list(client.chat.completions.create(model="llama3", messages=HELLO, stream=True))

    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == SKY
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [chunk.choices[0].finish_reason for chunk in chunks][-2:] == [None, "stop"]
    assert len({(chunk.id, chunk.created, chunk.model) for chunk in chunks}) == 1
    assert not any(chunk.usage for chunk in chunks)


def test_include_usage_adds_a_last_chunk_with_the_usage(client: openai.OpenAI) -> None:
    *chunks, last = client.chat.completions.create(
        model="llama3", messages=HELLO, stream=True, stream_options={"include_usage": True}
    )

    assert last.choices == [] and last.usage and last.usage.total_tokens == 2 + len(WORDS)
    assert all(chunk.usage is None and "usage" in chunk.model_fields_set for chunk in chunks)


def test_the_streaming_helper_assembles_the_completion(client: openai.OpenAI) -> None:
    with client.chat.completions.stream(model="llama3", messages=HELLO) as stream:
        kinds = {event.type for event in stream}
        final = stream.get_final_completion()

    assert final.choices[0].message.content == SKY and "content.delta" in kinds


def test_a_tool_call_and_its_result_reach_the_model(
    client: openai.OpenAI, gateway: RunningGateway
) -> None:
    gateway.ollama.answer("/api/chat", chat_script((), tool_calls=[CALL]), times=1)
    first = client.chat.completions.create(
        model="llama3", messages=HELLO, tools=[TOOL], tool_choice="auto"
    ).choices[0]
    calls = first.message.tool_calls or []
    result: Any = {"role": "tool", "tool_call_id": calls[0].id, "content": "rain"}

    turns: list[Any] = [*HELLO, first.message, result]
    response = client.chat.completions.create(model="llama3", messages=turns, tools=[TOOL])

    assert (first.finish_reason, first.message.content) == ("tool_calls", None)
    assert [(c.id, c.function.name) for c in calls] == [(CALL["id"], "weather")]  # type: ignore[union-attr]
    assert json.loads(calls[0].function.arguments) == {"city": "Kiel"}  # type: ignore[union-attr]
    assert response.choices[0].message.content
    _, assistant, tool = sent_body(gateway)["messages"]
    assert assistant == {"role": "assistant", "content": "", "tool_calls": [CALL]}
    assert tool["tool_name"] == "weather" and tool["tool_call_id"] == CALL["id"]
    assert "strict" not in sent_body(gateway)["tools"][0]["function"]


def test_streamed_tool_calls_have_unique_ids(
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


def test_a_response_is_parsed_by_its_schema(client: openai.OpenAI, gateway: RunningGateway) -> None:
    gateway.ollama.answer("/api/chat", chat_script(['{"age"', ":5}"]))

    response = client.chat.completions.parse(model="llama3", messages=HELLO, response_format=Age)

    assert response.choices[0].message.parsed == Age(age=5)
    assert sent_body(gateway)["format"]["properties"]["age"]["type"] == "integer"


def test_json_mode_reaches_the_model(client: openai.OpenAI, gateway: RunningGateway) -> None:
    client.chat.completions.create(
        model="llama3", messages=HELLO, response_format={"type": "json_object"}
    )

    assert sent_body(gateway)["format"] == "json"


def test_an_image_reaches_the_model(client: openai.OpenAI, gateway: RunningGateway) -> None:
    image = encoded(png(1, 1))
    parts = [
        {"type": "text", "text": "What is this?"},
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{image}"}},
    ]

    client.chat.completions.create(
        model="llama3",
        messages=[{"role": "user", "content": parts}],  # type: ignore[misc, list-item]
    )

    [message] = sent_body(gateway)["messages"]
    assert message == {"role": "user", "content": "What is this?", "images": [image]}


@pytest.mark.parametrize("limit", ["max_tokens", "max_completion_tokens"])
def test_sampling_options_and_the_token_limit_reach_the_model(
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

    options = sampling | {limit: 3}
    response = client.chat.completions.create(model="llama3", messages=HELLO, **options)

    assert sent_body(gateway)["options"] == {**sampling, "num_predict": 3}
    assert response.choices[0].finish_reason == "length"
    assert response.usage and response.usage.completion_tokens == 3


@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
def test_logprobs_are_returned(
    client: openai.OpenAI, gateway: RunningGateway, stream: bool
) -> None:
    top = {"token": "é", "logprob": -0.1}
    entry = {"token": "é", "logprob": -0.1, "bytes": [195, 169], "top_logprobs": [top]}
    line = {"message": {"role": "assistant", "content": "é"}, "done": False, "logprobs": [entry]}
    gateway.ollama.answer("/api/chat", [Line(line)], chat_script(()))

    response: Any = client.chat.completions.create(
        model="llama3", messages=HELLO, logprobs=True, top_logprobs=1, stream=stream
    )
    logprobs = [c.choices[0].logprobs for c in (response if stream else [response])]

    [token] = [token for each in logprobs if each for token in each.content]
    assert (token.token, token.logprob, token.bytes) == ("é", -0.1, [195, 169])
    assert token.top_logprobs[0].bytes == [195, 169]
    assert (sent_body(gateway)["logprobs"], sent_body(gateway)["top_logprobs"]) == (True, 1)


@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
def test_reasoning_is_separate_from_the_content(
    client: openai.OpenAI, gateway: RunningGateway, stream: bool
) -> None:
    gateway.ollama.answer("/api/chat", chat_script(["42"], thinking=["I ", "count"]))

    response: Any = client.chat.completions.create(
        model="llama3", messages=HELLO, reasoning_effort="low", stream=stream
    )
    messages = [c.choices[0].delta if stream else c.choices[0].message for c in as_list(response)]

    for name in ("reasoning", "reasoning_content"):
        assert "".join(getattr(message, name, None) or "" for message in messages) == "I count"
    assert "".join(message.content or "" for message in messages) == "42"
    assert sent_body(gateway)["think"] == "low"


def as_list(response: Any) -> list[Any]:
    return list(response) if isinstance(response, openai.Stream) else [response]


def test_unknown_parameters_are_ignored(client: openai.OpenAI, gateway: RunningGateway) -> None:
    client.chat.completions.create(
        model="llama3",
        messages=HELLO,
        user="u",
        service_tier="auto",
        extra_body={"num_ctx": 1, "keep_alive": -1, "nonsense": {"a": 1}},
    )

    assert set(sent_body(gateway)) == {"model", "stream", "messages", "options"}
    assert set(sent_body(gateway)["options"]) == {"num_predict"}
