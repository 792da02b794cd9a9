"""Calls with the `openai` client, and what the model server receives for them."""

from typing import Any

import openai
from pydantic import BaseModel

from tests.fakes.behaviour import WORDS
from tests.fakes.script import tokens
from tests.harness.gateway import RunningGateway

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


class Age(BaseModel):
    age: int


def client_of(gateway: RunningGateway, secret: str, **more: Any) -> openai.OpenAI:
    return openai.OpenAI(
        base_url=f"{gateway.server.url}/v1", api_key=secret, **{"max_retries": 0, **more}
    )


def chat_script(chunks: Any = ("ab",), **more: Any) -> Any:
    return tokens(chunks, path="/api/chat", **more)


def sent_body(gateway: RunningGateway) -> Any:
    """Return the body of the last request to the model server."""
    return gateway.ollama.requests[-1].json


def chat(client: openai.OpenAI, **more: Any) -> Any:
    return client.chat.completions.create(**{"model": "llama3", "messages": HELLO, **more})
