"""Requests of OpenAI's API, and readers of its responses."""

import json
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import strategies as st

from gateway.dialects.openai.dialect import CHAT, COMPLETIONS, EMBEDDINGS, RESPONSES, OpenAIDialect
from gateway.metering import Operation, Receipt, Usage
from gateway.upstream.chunk import Chunk
from gateway.validation.inference_request import InferenceRequest
from gateway.validation.policy import build
from gateway.validation.rules import Limits

# The moment stands in it: 2026-01-01T00:00:00Z.
REQUEST_ID = "019b76da-a800-7000-8000-000000000000"
CREATED = 1767225600
RECEIPT = Receipt(Usage(5, 9), Decimal("0.000046"), "USD")
LIMITS = Limits(10_000, 2, 10_000, 4, 100, 1000)
HELLO = [{"role": "user", "content": "hello there"}]
CALL = {"id": "a", "function": {"name": "f", "arguments": {"x": 1}}}

OPERATIONS = {
    CHAT: Operation.CHAT,
    COMPLETIONS: Operation.GENERATE,
    EMBEDDINGS: Operation.EMBED,
    RESPONSES: Operation.CHAT,
}
ASKED: dict[OpenAIDialect, dict[str, Any]] = {
    CHAT: {"messages": HELLO},
    COMPLETIONS: {"prompt": "hi"},
    EMBEDDINGS: {"input": "hi"},
    RESPONSES: {"input": "hi"},
}
WRITERS = [CHAT, COMPLETIONS, RESPONSES]
NAMES = {CHAT: "chat", COMPLETIONS: "completions", EMBEDDINGS: "embeddings", RESPONSES: "responses"}


def readable(value: Any) -> str:
    return NAMES[value] if isinstance(value, OpenAIDialect) else str(value)


each_writer = pytest.mark.parametrize("dialect", WRITERS, ids=readable)


def parse(dialect: OpenAIDialect, **fields: Any) -> InferenceRequest:
    return dialect.parse(OPERATIONS[dialect], {"model": "llama3", **ASKED[dialect], **fields})


def upstream(dialect: OpenAIDialect, **fields: Any) -> dict[str, Any]:
    """Return what the model server would be asked."""
    return build(parse(dialect, **fields), "llama3:latest", LIMITS).body


def renderer(dialect: OpenAIDialect, **fields: Any) -> Any:
    return dialect.renderer(parse(dialect, **fields), REQUEST_ID)


def said(text: str = "", **more: Any) -> Chunk:
    return Chunk(text=text, **more)


def end(reason: str = "stop", **more: Any) -> Chunk:
    return Chunk(done=True, fields={"done_reason": reason}, **more)


def events(stream: bytes) -> list[Any]:
    """Return the data of each event, which must be well framed and ASCII."""
    assert stream.endswith(b"\n\n") and stream.isascii()
    blocks = [block for block in stream.decode().split("\n\n") if block]
    found = [line[6:] for block in blocks for line in block.split("\n") if line[:6] == "data: "]
    return [one if one == "[DONE]" else json.loads(one) for one in found]


def streamed(dialect: OpenAIDialect, *chunks: Chunk, **fields: Any) -> list[Any]:
    writer = renderer(dialect, **fields)
    *first, last = chunks
    return events(b"".join(map(writer.chunk, first)) + writer.last(last, RECEIPT))


def whole(dialect: OpenAIDialect, *chunks: Chunk, **fields: Any) -> Any:
    return json.loads(renderer(dialect, **fields).body(chunks, RECEIPT))


def text_of(dialect: OpenAIDialect, answer: Any) -> str:
    """Return the text of a whole answer."""
    if dialect is RESPONSES:
        parts = [part for item in answer["output"] for part in item.get("content", [])]
        return "".join(part["text"] for part in parts)
    choice = answer["choices"][0]
    return str(choice["text"] if dialect is COMPLETIONS else choice["message"]["content"])


def pieces_of(dialect: OpenAIDialect, found: list[Any]) -> str:
    """Return the text of a stream, put together as its clients do."""
    if dialect is RESPONSES:
        deltas = [e for e in found if e["type"] == "response.output_text.delta"]
        return "".join(e["delta"] for e in deltas)
    choices = [e["choices"][0] for e in found if e != "[DONE]" and e.get("choices")]
    if dialect is COMPLETIONS:
        return "".join(choice["text"] for choice in choices)
    return "".join(choice["delta"].get("content", "") for choice in choices)


def is_complete(stream: bytes) -> bool:
    return any(mark in stream for mark in (b"[DONE]", b"response.completed", b"incomplete\n"))


TEXT = st.text(st.characters(codec=None) | st.sampled_from("\x85\u2028\ud800\n\r😀"), max_size=12)
