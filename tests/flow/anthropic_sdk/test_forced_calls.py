"""Anthropic's SDK reads a forced call from a stream."""

from typing import Any

import anthropic
import pytest

from tests.fakes.script import tokens
from tests.harness.gateway import RunningGateway

pytestmark = pytest.mark.usefixtures("priced")

ARGUMENTS = ['{"city"', *[" "] * 50, ': "Kiel"}']


def test_a_streamed_message_uses_the_tool(
    gateway: RunningGateway, client: anthropic.Anthropic
) -> None:
    gateway.ollama.answer("/api/chat", tokens(ARGUMENTS, path="/api/chat"))
    schema: Any = {"type": "object", "properties": {"city": {"type": "string"}}}

    with client.messages.stream(
        model="llama3",
        max_tokens=100,
        messages=[{"role": "user", "content": "hi"}],
        tools=[{"name": "weather", "input_schema": schema}],
        tool_choice={"type": "tool", "name": "weather"},
    ) as stream:
        message = stream.get_final_message()

    (block,) = message.content
    assert block.type == "tool_use" and block.input == {"city": "Kiel"}
    assert message.stop_reason == "tool_use"
