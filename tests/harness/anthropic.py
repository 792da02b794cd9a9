"""Requests of Anthropic's API, and readers of its responses."""

import json
from decimal import Decimal
from typing import Any

from gateway.dialects import ANTHROPIC
from gateway.dialects.anthropic.parsing import chat_fields
from gateway.metering import Operation, Receipt, Usage
from gateway.validation.inference_request import InferenceRequest
from gateway.validation.rules import Limits
from tests.harness.images import encoded, png

CHAT = Operation.CHAT
REQUEST_ID = "01890a5d-ac96-774b-bcce-b302099a8057"
RECEIPT = Receipt(Usage(5, 9), Decimal("0.000046"), "USD")
USAGE = {"input_tokens": 5, "output_tokens": 9, "cost": "0.000046", "currency": "USD"}
HELLO = [{"role": "user", "content": "hello there"}]
PNG = {"type": "base64", "media_type": "image/png", "data": encoded(png())}
WEATHER = {"name": "weather", "description": "Today's", "input_schema": {"type": "object"}}
CALL = {"function": {"name": "weather", "arguments": {"city": "Kiel"}}}
LIMITS = Limits(10**6, 8, 10**6, 8, 100, 1000)


def fields(**asked: Any) -> dict[str, Any]:
    return chat_fields({"max_tokens": 64, "messages": HELLO, **asked})


def said(*content: Any, role: str = "user") -> list[dict[str, Any]]:
    """The native messages that one message of blocks becomes."""
    found: list[dict[str, Any]] = fields(messages=[{"role": role, "content": list(content)}])[
        "messages"
    ]
    return found


def text(words: str) -> dict[str, Any]:
    return {"type": "text", "text": words}


def result(content: Any, **more: Any) -> dict[str, Any]:
    return {"type": "tool_result", "tool_use_id": "toolu_1", "content": content, **more}


def renderer(stream: bool = True) -> Any:
    return ANTHROPIC.renderer(InferenceRequest(CHAT, "LLaMA3", stream), REQUEST_ID)


def events(body: bytes) -> list[dict[str, Any]]:
    """The events of a stream, each of which must be framed as Anthropic frames it."""
    assert body.isascii() and (not body or body.endswith(b"\n\n"))
    return [framed(frame) for frame in body.decode().split("\n\n")[:-1]]


def framed(frame: str) -> dict[str, Any]:
    name, data = frame.split("\n")
    value: dict[str, Any] = json.loads(data.removeprefix("data: "))
    assert name == f"event: {value['type']}"
    return value


def names(body: bytes) -> list[str]:
    return [event["type"] for event in events(body)]


DROPPED = {
    "metadata": {"user_id": "u"},
    "service_tier": "auto",
    "cache_control": {"type": "ephemeral"},
    "betas": ["x"],
    "context_management": {"edits": []},
    "keep_alive": -1,
    "num_ctx": 10**9,
    "nonsense": 5,
}
