"""Write answers as OpenAI's clients read them: one JSON object, or server-sent events. Pure."""

import base64
import json
import struct
from collections.abc import Iterator, Sequence
from typing import Any
from uuid import UUID

from gateway.dialects.json_fragments import Items, compact, dump, items, joined_items
from gateway.dialects.openai import logprobs
from gateway.dialects.openai.errors import error_object
from gateway.dialects.sse import KEEPALIVE, event
from gateway.errors import GatewayError, UpstreamBroke
from gateway.metering import Receipt
from gateway.upstream.chunk import Chunk
from gateway.validation.inference_request import InferenceRequest

DONE = b"data: [DONE]\n\n"


def created_at(request_id: str) -> int:
    """Return the second a request came, which its UUIDv7 holds; one figure for a whole answer."""
    return (UUID(request_id).int >> 80) // 1000


def plain_id(request_id: str) -> str:
    """Return a request's id as a part of the ids this family makes of it."""
    return request_id.replace("-", "")


def usage_object(receipt: Receipt | None) -> dict[str, Any] | None:
    if receipt is None:
        return None
    usage = receipt.usage
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.total_tokens,
        "cost": receipt.cost_text,
        "currency": receipt.currency,
    }


class OpenAIRenderer:
    """What the answers of this family share."""

    content_type = "text/event-stream"
    kind = ""
    prefix = ""

    def __init__(self, request: InferenceRequest, request_id: str) -> None:
        self.request = request
        self.request_id = request_id
        self.calls = 0
        self.begun = False

    # --- A stream ---

    def keepalive(self) -> bytes:
        return KEEPALIVE

    def chunk(self, chunk: Chunk) -> bytes:
        return b"".join(event(self._piece(choice)) for choice in self._choices(chunk))

    def last(self, chunk: Chunk, receipt: Receipt | None) -> bytes:
        pieces = [self.chunk(chunk), event(self._piece(self._finish(chunk)))]
        if self.request.options.include_usage:
            pieces.append(event(self._piece(None) | {"usage": usage_object(receipt)}))
        return b"".join([*pieces, DONE])

    def error(self, error: GatewayError) -> bytes:
        return event(error_object(error, self.request_id))

    def _head(self, kind: str) -> dict[str, Any]:
        return {
            "id": f"{self.prefix}-{plain_id(self.request_id)}",
            "object": kind,
            "created": created_at(self.request_id),
            "model": self.request.model,
        }

    def _piece(self, choice: dict[str, Any] | None) -> dict[str, Any]:
        """Return a chunk object; the one with the usage has no choice in it."""
        piece = self._head(self.kind) | {"choices": [choice] if choice else []}
        return piece | {"usage": None} if self.request.options.include_usage else piece

    def compact(self, chunk: Chunk) -> Chunk:
        return logprobs.keep_entries(chunk)

    def body(self, chunks: Sequence[Chunk], receipt: Receipt | None) -> bytes:
        raise NotImplementedError

    def _choices(self, chunk: Chunk) -> Iterator[dict[str, Any]]:
        raise NotImplementedError

    def _finish(self, chunk: Chunk) -> dict[str, Any]:
        raise NotImplementedError

    def _reason(self, chunk: Chunk) -> str:
        if chunk.fields.get("done_reason") == "length":
            return "length"
        return "tool_calls" if self.calls else "stop"


class ChatRenderer(OpenAIRenderer):
    """Chat completions."""

    kind = "chat.completion.chunk"
    prefix = "chatcmpl"

    def body(self, chunks: Sequence[Chunk], receipt: Receipt | None) -> bytes:
        calls = [call for chunk in chunks for call in self._calls(chunk)]
        text = "".join(chunk.text for chunk in chunks)
        thinking = "".join(chunk.thinking for chunk in chunks)
        message: dict[str, Any] = {"role": "assistant", "content": text or None if calls else text}
        message |= reasoning(thinking) | ({"tool_calls": calls} if calls else {})
        choice = {
            "index": 0,
            "message": message | {"refusal": None},
            "logprobs": logprobs.of_chat(chunks),
            "finish_reason": self._reason(chunks[-1]),
        }
        answer = self._head("chat.completion") | {"choices": [choice]}
        return dump(answer | {"usage": usage_object(receipt)})

    def _choices(self, chunk: Chunk) -> Iterator[dict[str, Any]]:
        """Yield one delta for each thing a chunk carries; the first says whose words they are."""
        for delta in self._deltas(chunk):
            if not self.begun:
                delta = {"role": "assistant", **delta}
            self.begun = True
            probabilities = logprobs.of_chat([chunk]) if "content" in delta else None
            yield choice(delta, probabilities)

    def _deltas(self, chunk: Chunk) -> Iterator[dict[str, Any]]:
        if chunk.thinking:
            yield reasoning(chunk.thinking)
        if chunk.text or logprobs.entries(chunk) or not (self.begun or chunk.carries_output):
            yield {"content": chunk.text}
        first = self.calls
        if calls := self._calls(chunk):
            yield {"tool_calls": [{"index": first + i, **call} for i, call in enumerate(calls)]}

    def _finish(self, chunk: Chunk) -> dict[str, Any]:
        return choice({}, None, self._reason(chunk))

    def _calls(self, chunk: Chunk) -> list[dict[str, Any]]:
        return [self._call(native) for native in chunk.tool_calls]

    def _call(self, native: dict[str, Any]) -> dict[str, Any]:
        """Return a tool call, with an id of ours if it has none."""
        call_id = native.get("id") or f"call_{plain_id(self.request_id)}_{self.calls}"
        self.calls += 1
        function = called(native)
        client = self.request.options.tools.get(function["name"])
        if client is not None and client.kind == "custom":
            custom = {"name": client.name, "input": input_text(native)}
            return {"id": call_id, "type": "custom", "custom": custom}
        return {"id": call_id, "type": "function", "function": function}


def choice(
    delta: dict[str, Any], probabilities: Any = None, reason: str | None = None
) -> dict[str, Any]:
    return {"index": 0, "delta": delta, "logprobs": probabilities, "finish_reason": reason}


def called(native: dict[str, Any]) -> dict[str, str]:
    """Return the name of the tool a model calls, and its arguments as JSON in a text."""
    function = native.get("function")
    function = function if isinstance(function, dict) else {}
    arguments = function.get("arguments") or {}
    written = arguments if isinstance(arguments, str) else json.dumps(arguments)
    return {"name": str(function.get("name") or ""), "arguments": written}


def input_text(native: dict[str, Any]) -> str:
    """Return the one text that a model gives to a custom tool; whatever else it gives as JSON."""
    function = native.get("function")
    arguments = function.get("arguments") if isinstance(function, dict) else None
    text = arguments.get("input") if isinstance(arguments, dict) else arguments
    return text if isinstance(text, str) else json.dumps(arguments)


def reasoning(thinking: str) -> dict[str, str]:
    """Return a model's thinking under both names that clients look for."""
    return {"reasoning": thinking, "reasoning_content": thinking} if thinking else {}


class CompletionRenderer(OpenAIRenderer):
    """Text completions."""

    kind = "text_completion"
    prefix = "cmpl"

    def __init__(self, request: InferenceRequest, request_id: str) -> None:
        super().__init__(request, request_id)
        self.written = 0

    def compact(self, chunk: Chunk) -> Chunk:
        return logprobs.keep_columns(chunk)

    def body(self, chunks: Sequence[Chunk], receipt: Receipt | None) -> bytes:
        answer = self._head(self.kind)
        answer["choices"] = [self._choice(chunks, self._reason(chunks[-1]))]
        return dump(answer | {"usage": usage_object(receipt)})

    def _choices(self, chunk: Chunk) -> Iterator[dict[str, Any]]:
        if chunk.text or logprobs.entries(chunk):
            yield self._choice([chunk])

    def _finish(self, chunk: Chunk) -> dict[str, Any]:
        return self._choice([], self._reason(chunk))

    def _choice(self, chunks: Sequence[Chunk], reason: str | None = None) -> dict[str, Any]:
        text = "".join(chunk.text for chunk in chunks)
        probabilities = logprobs.of_completion(chunks, self.written)
        self.written += len(text)
        return {"index": 0, "text": text, "logprobs": probabilities, "finish_reason": reason}


class EmbeddingsRenderer(OpenAIRenderer):
    """Embeddings, as numbers or as base64 of little-endian 32-bit floats."""

    def compact(self, chunk: Chunk) -> Chunk:
        return compact(chunk, embeddings=self._vectors(chunk.fields["embeddings"]))

    def body(self, chunks: Sequence[Chunk], receipt: Receipt | None) -> bytes:
        found = joined_items((chunk.fields["embeddings"] for chunk in chunks), self._vectors)
        data = [
            {"object": "embedding", "index": index, "embedding": vector}
            for index, vector in enumerate(found.parts)
        ]
        usage = usage_object(receipt) or {}
        usage.pop("completion_tokens", None)
        answer = {"object": "list", "data": data, "model": self.request.model, "usage": usage}
        return dump(answer)

    def _vectors(self, vectors: list[list[float]]) -> Items:
        return items(map(self._encoded, vectors))

    def _encoded(self, vector: list[float]) -> list[float] | str:
        if not self.request.options.base64:
            return vector
        try:
            packed = struct.pack(f"<{len(vector)}f", *vector)
        except (struct.error, OverflowError):
            raise UpstreamBroke() from None
        return base64.b64encode(packed).decode()
