"""OpenAI's SDK reads a forced call from a stream, and leaving it stops the model."""

import json
from typing import Any

import openai
import pytest

from tests.fakes.script import Stall, tokens
from tests.harness.gateway import RunningGateway, usage_row

pytestmark = pytest.mark.usefixtures("priced")

WEATHER: Any = {
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
}
TOOLS: Any = [{"type": "function", "function": {"name": "weather", "parameters": WEATHER}}]
# More than one keep-alive while they come.
ARGUMENTS = ['{"city"', *[" "] * 50, ': "Kiel"}']


def test_a_streamed_chat_completion_calls_the_tool(
    gateway: RunningGateway, client: openai.OpenAI
) -> None:
    gateway.ollama.answer("/api/chat", tokens(ARGUMENTS, path="/api/chat"))

    with client.chat.completions.stream(
        model="llama3",
        messages=[{"role": "user", "content": "hi"}],
        tools=TOOLS,
        tool_choice="required",
    ) as stream:
        completion = stream.get_final_completion()

    (choice,) = completion.choices
    (call,) = choice.message.tool_calls or []
    assert (call.function.name, json.loads(call.function.arguments)) == (
        "weather",
        {"city": "Kiel"},
    )
    assert choice.finish_reason == "tool_calls"


def test_a_streamed_response_calls_the_tool(gateway: RunningGateway, client: openai.OpenAI) -> None:
    gateway.ollama.answer("/api/chat", tokens(ARGUMENTS, path="/api/chat"))

    with client.responses.stream(
        model="llama3",
        input="hi",
        tools=[{"type": "function", "name": "weather", "parameters": WEATHER, "strict": False}],
        tool_choice={"type": "function", "name": "weather"},
    ) as stream:
        response = stream.get_final_response()

    (call,) = response.output
    assert call.type == "function_call" and json.loads(call.arguments) == {"city": "Kiel"}


def test_leaving_a_forced_stream_stops_the_model(
    gateway: RunningGateway, client: openai.OpenAI
) -> None:
    script = [*tokens(ARGUMENTS[:30], path="/api/chat", done=False), Stall()]
    gateway.ollama.answer("/api/chat", script)

    stream = client.chat.completions.create(
        model="llama3",
        messages=[{"role": "user", "content": "hi"}],
        tools=TOOLS,
        tool_choice="required",
        stream=True,
    )
    (received,) = gateway.ollama.calls("/api/chat")
    stream.close()

    assert received.left.wait(5), "the model server still works"
    assert usage_row().outcome == "client_left"
