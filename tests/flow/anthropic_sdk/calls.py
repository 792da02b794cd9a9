"""Calls with the `anthropic` client."""

from typing import Any

import anthropic

from tests.fakes.script import reply
from tests.harness.gateway import RunningGateway

CHAT = "/api/chat"
HELLO = [{"role": "user", "content": "hello there"}]
REQUEST: dict[str, Any] = {"model": "llama3", "max_tokens": 64, "messages": HELLO}
WEATHER = {
    "name": "weather",
    "description": "Today's weather",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}},
}
CALL = {"function": {"name": "weather", "arguments": {"city": "Kiel"}}}
KEEP_ALIVE = 0.2
BUSY = reply({"error": "server busy"}, 503)


def client_of(gateway: RunningGateway, secret: str) -> anthropic.Anthropic:
    return anthropic.Anthropic(api_key=secret, base_url=gateway.server.url, max_retries=0)


def text_of(message: Any) -> str:
    return "".join(block.text for block in message.content if block.type == "text")


def create(client: anthropic.Anthropic, stream: bool, **more: Any) -> Any:
    if not stream:
        return client.messages.create(**REQUEST | more)
    with client.messages.stream(**REQUEST | more) as events:
        return events.get_final_message()
