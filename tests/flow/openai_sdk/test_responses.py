"""The Responses API with the `openai` client."""

import json
from typing import Any

import openai
import pytest

from tests.fakes.behaviour import WORDS
from tests.flow.openai_sdk.calls import (
    CALL,
    SKY,
    TOOL,
    Age,
    chat_script,
    sent_body,
)
from tests.harness.gateway import RunningGateway

pytestmark = pytest.mark.usefixtures("priced")


def test_a_response(client: openai.OpenAI, gateway: RunningGateway) -> None:
    response = client.responses.create(
        model="llama3", input="hello there", instructions="Be brief.", metadata={"a": "b"}
    )

    assert (response.output_text, response.status, response.error) == (SKY, "completed", None)
    assert response.output[0].type == "message" and response.output[0].status == "completed"
    assert response.usage and response.usage.total_tokens == 4 + len(WORDS)
    assert (response.instructions, response.metadata) == ("Be brief.", {"a": "b"})
    assert response.to_dict()["store"] is False
    assert [m["role"] for m in sent_body(gateway)["messages"]] == ["system", "user"]


def test_a_streamed_response_has_numbered_events_and_a_final_response(
    client: openai.OpenAI,
) -> None:
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


def test_the_streaming_helper_assembles_reasoning_text_and_calls(
    client: openai.OpenAI, gateway: RunningGateway
) -> None:
    gateway.ollama.answer("/api/chat", chat_script("ab", thinking="xy", tool_calls=[CALL]))
    tool: Any = {"type": "function", **TOOL["function"]}

    with client.responses.stream(model="llama3", input="hi", tools=[tool]) as stream:
        list(stream)
        final = stream.get_final_response()

    reasoning, message, call = final.output
    assert reasoning.type == "reasoning" and reasoning.summary[0].text == "xy"
    assert message.type == "message" and final.output_text == "ab"
    assert call.type == "function_call" and call.call_id == CALL["id"]
    assert json.loads(call.arguments) == {"city": "Kiel"}
    assert len({reasoning.id, message.id, call.id}) == 3
    assert sent_body(gateway)["tools"][0]["function"]["name"] == "weather"


def test_a_conversation_continues_with_the_output_items(
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
    items: Any = [{"role": "user", "content": "hi"}, *first.output, *results]

    client.responses.create(model="llama3", input=items)

    _user, assistant, rain, sun = sent_body(gateway)["messages"]
    assert assistant["content"] == "Hm" and len(assistant["tool_calls"]) == 2
    assert (rain["content"], rain["tool_name"], sun["content"]) == ("rain", "weather", "sun")


def test_a_response_at_its_token_limit_is_incomplete(client: openai.OpenAI) -> None:
    whole = client.responses.create(model="llama3", input="hi", max_output_tokens=3)
    *_, last = client.responses.create(model="llama3", input="hi", max_output_tokens=3, stream=True)

    assert last.type == "response.incomplete"
    for response in (whole, last.response):
        assert response.status == "incomplete" and response.output[0].status == "incomplete"  # type: ignore[union-attr]
        assert (
            response.incomplete_details
            and response.incomplete_details.reason == "max_output_tokens"
        )


def test_a_response_is_parsed_by_its_schema(client: openai.OpenAI, gateway: RunningGateway) -> None:
    gateway.ollama.answer("/api/chat", chat_script(['{"age":5}']))

    response = client.responses.parse(
        model="llama3", input="hi", text_format=Age, reasoning={"effort": "none"}
    )

    assert response.output_parsed == Age(age=5)
    assert (
        sent_body(gateway)["format"]["required"] == ["age"] and sent_body(gateway)["think"] is False
    )
