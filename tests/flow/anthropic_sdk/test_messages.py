"""Messages with the `anthropic` client."""

import asyncio
from decimal import Decimal

import anthropic
import pydantic
import pytest

from tests.fakes.script import tokens
from tests.flow.anthropic_sdk.calls import (
    CALL,
    CHAT,
    HELLO,
    REQUEST,
    WEATHER,
    create,
    text_of,
)
from tests.harness.anthropic import PNG
from tests.harness.callers import Caller
from tests.harness.gateway import RunningGateway, usage_row

pytestmark = pytest.mark.usefixtures("priced")


def test_a_message(client: anthropic.Anthropic) -> None:
    message = client.messages.create(**REQUEST)

    assert text_of(message).startswith("The sky") and message.stop_reason == "end_turn"
    assert (message.usage.input_tokens, message.usage.output_tokens) == (2, 9)
    row = usage_row()
    assert message.id == f"msg_{row.request_id.hex}" and message._request_id == str(row.request_id)


def test_the_usage_is_that_of_the_usage_row(client: anthropic.Anthropic) -> None:
    usage = client.messages.create(**REQUEST).usage

    row = usage_row()
    counts = (usage.input_tokens, usage.output_tokens)
    assert counts == (row.prompt_tokens, row.completion_tokens)
    assert Decimal(usage.cost) == row.cost > 0 and usage.currency == "USD"


def test_a_stream_ends_with_the_model_servers_counts(
    client: anthropic.Anthropic, gateway: RunningGateway
) -> None:
    gateway.ollama.answer(CHAT, tokens(["Hel", "lo", " Kiel"], path=CHAT, prompt=7, count=33))

    with client.messages.stream(**REQUEST) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()

    assert text == text_of(final) == "Hello Kiel"
    assert (final.usage.input_tokens, final.usage.output_tokens) == (7, 33)
    assert final.stop_reason == "end_turn"
    assert (usage_row().prompt_tokens, usage_row().completion_tokens) == (7, 33)


def test_a_raw_stream_ends_with_its_cost(client: anthropic.Anthropic) -> None:
    *_, delta, stop = client.messages.create(**REQUEST, stream=True)

    assert stop.type == "message_stop" and delta.type == "message_delta"
    assert Decimal(delta.usage.cost) == usage_row().cost > 0


def test_the_asynchronous_client_streams(gateway: RunningGateway, alice: Caller) -> None:
    async def ask() -> str:
        url = gateway.server.url
        client = anthropic.AsyncAnthropic(api_key=alice.secret, base_url=url, max_retries=0)
        async with client, client.messages.stream(**REQUEST) as stream:
            return text_of(await stream.get_final_message())

    assert asyncio.run(ask()).startswith("The sky")


def test_the_beta_client_works_with_a_bearer_token(gateway: RunningGateway, alice: Caller) -> None:
    client = anthropic.Anthropic(
        auth_token=alice.secret, base_url=gateway.server.url, max_retries=0
    )

    message = client.beta.messages.create(**REQUEST, betas=["interleaved-thinking-2025-05-14"])
    assert text_of(message).startswith("The sky")


def test_system_prompt_stop_sequences_and_sampling_reach_the_model(
    client: anthropic.Anthropic, gateway: RunningGateway
) -> None:
    client.messages.create(
        **REQUEST,
        system=[{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}],
        stop_sequences=["END"],
        metadata={"user_id": "u"},
        # This version of the client has no arguments for them; others have.
        extra_body={"temperature": 0.2, "top_k": 40, "top_p": 0.9},
    )

    body = gateway.ollama.requests[-1].json
    assert body["messages"] == [{"role": "system", "content": "Be brief."}, *HELLO]
    options = {"stop": ["END"], "temperature": 0.2, "top_k": 40, "top_p": 0.9, "num_predict": 64}
    assert body["options"] == options


def test_a_message_at_its_token_limit_stops_with_max_tokens(client: anthropic.Anthropic) -> None:
    message = client.messages.create(**REQUEST | {"max_tokens": 3})

    assert (message.stop_reason, message.usage.output_tokens) == ("max_tokens", 3)


def test_an_image_reaches_the_model(client: anthropic.Anthropic, gateway: RunningGateway) -> None:
    content = [{"type": "text", "text": "What?"}, {"type": "image", "source": PNG}]

    client.messages.create(**REQUEST | {"messages": [{"role": "user", "content": content}]})

    [message] = gateway.ollama.requests[-1].json["messages"]
    assert message == {"role": "user", "content": "What?", "images": [PNG["data"]]}


@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
def test_thinking_comes_before_the_text(
    client: anthropic.Anthropic, gateway: RunningGateway, stream: bool
) -> None:
    gateway.ollama.answer(CHAT, tokens(["Hi"], path=CHAT, thinking=["I ", "greet"]))

    message = create(client, stream, thinking={"type": "enabled", "budget_tokens": 1024})

    thinking, text = message.content
    assert (thinking.type, thinking.thinking, thinking.signature) == ("thinking", "I greet", "")
    assert text.text == "Hi" and gateway.ollama.requests[-1].json["think"] is True


@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
def test_a_tool_call_and_its_result_reach_the_model(
    client: anthropic.Anthropic, gateway: RunningGateway, stream: bool
) -> None:
    call = tokens(["Let me see"], path=CHAT, thinking=["Hm"], tool_calls=[CALL])
    gateway.ollama.answer(CHAT, call, times=1)

    first = create(client, stream, tools=[WEATHER])
    use = first.content[-1]
    result = {"type": "tool_result", "tool_use_id": use.id, "content": "rain"}
    turns = [
        *HELLO,
        {"role": "assistant", "content": first.content},
        {"role": "user", "content": [result, {"type": "text", "text": "So?"}]},
    ]
    create(client, stream, tools=[WEATHER], messages=turns)

    assert first.stop_reason == "tool_use" and use.input == {"city": "Kiel"}
    _hello, assistant, tool, so = gateway.ollama.requests[-1].json["messages"]
    assert (assistant["content"], assistant["thinking"]) == ("Let me see", "Hm")
    function = {"name": "weather", "arguments": {"city": "Kiel"}}
    assert assistant["tool_calls"] == [{"id": use.id, "function": function}]
    about = {"role": "tool", "tool_call_id": use.id, "tool_name": "weather"}
    assert tool == {**about, "content": "rain"} and so["content"] == "So?"


class Number(pydantic.BaseModel):
    n: int


def test_a_message_is_parsed_by_its_schema(
    client: anthropic.Anthropic, gateway: RunningGateway
) -> None:
    gateway.ollama.answer(CHAT, tokens(['{"n":', "7}"], path=CHAT))

    message = client.messages.parse(**REQUEST, output_format=Number)

    assert message.parsed_output == Number(n=7)
    assert gateway.ollama.requests[-1].json["format"]["properties"]["n"]["type"] == "integer"
