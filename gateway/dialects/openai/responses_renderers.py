"""Write answers of the Responses API: items that open, grow and close, one event for each step.

A whole answer is written by the same steps; so it is what a streamed one ends with. Pure.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from gateway import catalogue
from gateway.dialects import sse
from gateway.dialects.json_fragments import Items, dump
from gateway.dialects.openai import logprobs
from gateway.dialects.openai.errors import error_fields
from gateway.dialects.openai.renderers import called, created_at, input_text, plain_id
from gateway.dialects.openai.responses_input import THINKING
from gateway.errors import GatewayError
from gateway.metering import Receipt
from gateway.upstream.chunk import Chunk
from gateway.validation.inference_request import InferenceRequest

Event = dict[str, Any]


@dataclass
class Item:
    """One piece of output being written: what was thought, what was said, or a call."""

    kind: str
    item_id: str
    index: int
    text: list[str] = field(default_factory=list)
    probabilities: Items = field(default_factory=Items)
    # Whether thinking is repeated so that the client can return it.
    encrypted: bool = False

    @property
    def at(self) -> Event:
        return {"item_id": self.item_id, "output_index": self.index}

    def opened(self) -> Event:
        """Return the item as it is when it opens."""
        if self.kind == "reasoning":
            return {"id": self.item_id, "type": "reasoning", "summary": []}
        return self._message("in_progress", [])

    def closed(self, status: str) -> Event:
        """Return the item with all it holds."""
        if self.kind == "reasoning":
            thinking = THINKING + "".join(self.text)
            encrypted = {"encrypted_content": thinking} if self.encrypted else {}
            return self.opened() | {"summary": [self.part()]} | encrypted
        return self._message(status, [self.part()])

    def part(self) -> Event:
        text = "".join(self.text)
        if self.kind == "reasoning":
            return {"type": "summary_text", "text": text}
        said: Event = {"text": text, "annotations": [], "logprobs": self.probabilities or []}
        return {"type": "output_text", **said}

    def _message(self, status: str, parts: list[Event]) -> Event:
        head = {"id": self.item_id, "type": "message", "role": "assistant"}
        return {**head, "status": status, "content": parts}


class ResponseRenderer:
    """Responses, streamed as events with a number each, or whole."""

    content_type = "text/event-stream"

    def __init__(self, request: InferenceRequest, request_id: str) -> None:
        self.request = request
        self.request_id = request_id
        self.output: list[Event] = []
        self.open: Item | None = None
        self.number = 0

    # --- A stream ---

    def keepalive(self) -> bytes:
        return sse.KEEPALIVE

    def chunk(self, chunk: Chunk) -> bytes:
        return self._written([*self._begin(), *self._said(chunk)])

    def last(self, chunk: Chunk, receipt: Receipt | None) -> bytes:
        events = [*self._begin(), *self._said(chunk), *self._close(ending(chunk))]
        answer = self._ended(chunk, receipt)
        events.append({"type": f"response.{answer['status']}", "response": answer})
        return self._written(events)

    def error(self, error: GatewayError) -> bytes:
        """End with an error, at which clients raise, and the response as far as it came."""
        told = error_fields(error)
        code = "server_error" if error.status >= 500 else "invalid_prompt"
        answer = self._response("failed") | {"error": {"code": code, "message": error.message}}
        # Told twice: the event has the fields beside its type, clients raise for `error`.
        broken = {**told, "type": "error", "error": told, "request_id": self.request_id}
        failed = {"type": "response.failed", "response": answer}
        return self._written([*self._begin(), broken, failed])

    def compact(self, chunk: Chunk) -> Chunk:
        return logprobs.keep_entries(chunk)

    def body(self, chunks: Sequence[Chunk], receipt: Receipt | None) -> bytes:
        for chunk in chunks:
            list(self._said(chunk))
        list(self._close(ending(chunks[-1])))
        return dump(self._ended(chunks[-1], receipt))

    def _written(self, events: Sequence[Event]) -> bytes:
        return b"".join(map(self._event, events))

    def _event(self, event: Event) -> bytes:
        numbered = {**event, "sequence_number": self.number}
        self.number += 1
        return sse.event(numbered, event["type"])

    def _begin(self) -> Iterator[Event]:
        if self.number == 0:
            for kind in ("response.created", "response.in_progress"):
                yield {"type": kind, "response": self._response("in_progress")}

    # --- Items ---

    def _said(self, chunk: Chunk) -> Iterator[Event]:
        """Yield what happens by a chunk: what is thought, then said, then called."""
        if chunk.thinking:
            yield from self._write("reasoning", chunk.thinking, Items())
        probabilities = logprobs.entries(chunk)
        if chunk.text or probabilities:
            yield from self._write("message", chunk.text, probabilities)
        for native in chunk.tool_calls:
            yield from self._close("completed")
            yield from self._call(native)

    def _write(self, kind: str, text: str, probabilities: Items) -> Iterator[Event]:
        if self.open is None or self.open.kind != kind:
            yield from self._close("completed")
            yield from self._open(kind)
        assert self.open is not None
        self.open.text.append(text)
        self.open.probabilities.parts += probabilities.parts
        yield {"type": f"response.{TEXT[kind]}.delta", **self._here(), "delta": text} | (
            {"logprobs": probabilities or []} if kind == "message" else {}
        )

    def _open(self, kind: str) -> Iterator[Event]:
        prefix = "rs" if kind == "reasoning" else "msg"
        encrypted = self.request.options.encrypted_reasoning
        self.open = item = Item(kind, self._item_id(prefix), len(self.output), encrypted=encrypted)
        yield added(item.index, item.opened())
        yield {"type": f"response.{PART[kind]}.added", **self._here(), "part": item.part()}

    def _close(self, status: str) -> Iterator[Event]:
        """Yield the end of the item that is open, if one is."""
        if self.open is None:
            return
        item, part = self.open, self.open.part()
        more: Event = {"logprobs": item.probabilities or []} if item.kind == "message" else {}
        done = {"type": f"response.{TEXT[item.kind]}.done", "text": part["text"], **more}
        yield done | self._here()
        yield {"type": f"response.{PART[item.kind]}.done", **self._here(), "part": part}
        self.output.append(item.closed(status))
        self.open = None
        yield finished(item.index, self.output[-1])

    def _call(self, native: dict[str, Any]) -> Iterator[Event]:
        """Yield the life of a call, which comes whole."""
        index, function = len(self.output), called(native)
        client = self.request.options.tools.get(function["name"])
        is_custom = client is not None and client.kind == "custom"
        kind, prefix, content = CUSTOM if is_custom else FUNCTION
        item_id = self._item_id(prefix)
        written = input_text(native) if is_custom else function["arguments"]
        item = {
            "id": item_id,
            "type": f"{kind}_call",
            "call_id": native.get("id") or self._item_id("call"),
            "name": client.name if client else function["name"],
            **({"namespace": client.namespace} if client and client.namespace else {}),
        }
        at = {"item_id": item_id, "output_index": index}
        growing = f"response.{kind}_call_{content}"
        named = {} if is_custom else {"name": item["name"]}
        yield added(index, item | {content: "", "status": "in_progress"})
        yield {"type": f"{growing}.delta", **at, "delta": written}
        yield {"type": f"{growing}.done", **at, content: written, **named}
        self.output.append(item | {content: written, "status": "completed"})
        yield finished(index, self.output[-1])

    def _here(self) -> Event:
        """Return where the item that is open stands, and its only part."""
        assert self.open is not None
        part = "summary_index" if self.open.kind == "reasoning" else "content_index"
        return {**self.open.at, part: 0}

    def _item_id(self, prefix: str) -> str:
        return f"{prefix}_{plain_id(self.request_id)}_{len(self.output)}"

    # --- The response ---

    def _response(self, status: str, receipt: Receipt | None = None) -> Event:
        """Return the response as it stands; what the client said of itself is said back."""
        return {
            "id": f"resp_{plain_id(self.request_id)}",
            "object": "response",
            "created_at": created_at(self.request_id),
            "completed_at": None,
            "status": status,
            "error": None,
            "incomplete_details": None,
            "model": self.request.model,
            "output": list(self.output),
            "usage": usage_object(receipt),
            "background": False,
            "previous_response_id": None,
            "store": False,
            **self.request.options.echo,
        }

    def _ended(self, chunk: Chunk, receipt: Receipt | None) -> Event:
        status = ending(chunk)
        details = {"reason": "max_output_tokens"} if status == "incomplete" else None
        ended: Event = {"incomplete_details": details}
        if status == "completed":
            # By the model server's clock, which may be behind ours.
            at = catalogue.seconds(chunk.fields.get("created_at"))
            ended["completed_at"] = max(at, created_at(self.request_id))
        return self._response(status, receipt) | ended


# Of a call: the beginning of its type and of its id, and the field for what the model wrote.
FUNCTION = ("function", "fc", "arguments")
CUSTOM = ("custom_tool", "ctc", "input")

# How the events of an item are called, by its kind.
TEXT = {"reasoning": "reasoning_summary_text", "message": "output_text"}
PART = {"reasoning": "reasoning_summary_part", "message": "content_part"}


def added(index: int, item: Event) -> Event:
    return {"type": "response.output_item.added", "output_index": index, "item": item}


def finished(index: int, item: Event) -> Event:
    return {"type": "response.output_item.done", "output_index": index, "item": item}


def ending(chunk: Chunk) -> str:
    """Return how an answer ended: all of it, or cut by its length."""
    return "incomplete" if chunk.fields.get("done_reason") == "length" else "completed"


def usage_object(receipt: Receipt | None) -> Event | None:
    """Return the usage of a response; what is cached or thought is not priced apart."""
    if receipt is None:
        return None
    usage = receipt.usage
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": usage.total_tokens,
        "cost": receipt.cost_text,
        "currency": receipt.currency,
    }
