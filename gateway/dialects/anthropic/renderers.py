"""Write answers as Anthropic's clients read them: one message, or its events in order. Pure."""

import json
from collections.abc import Iterator, Sequence
from itertools import groupby
from operator import itemgetter
from typing import Any

from gateway.dialects import sse
from gateway.dialects.anthropic.errors import error_object
from gateway.dialects.json_fragments import compact
from gateway.errors import GatewayError
from gateway.metering import Receipt
from gateway.upstream.chunk import Chunk
from gateway.validation.inference_request import InferenceRequest

Block = dict[str, Any]

# What a block of text or thinking is before its first word. Nothing is signed here.
EMPTY: dict[str, Block] = {
    "text": {"type": "text", "text": ""},
    "thinking": {"type": "thinking", "thinking": "", "signature": ""},
}
# The model server tells the prompt's tokens at the end, so a stream begins without them.
NOT_YET_COUNTED = {"input_tokens": 0, "output_tokens": 0}


def event(kind: str, **fields: Any) -> bytes:
    """Return one event, which names its kind twice."""
    return sse.event({"type": kind, **fields}, kind)


def usage_object(last: Chunk, receipt: Receipt | None) -> dict[str, Any]:
    """Return the counts and the cost; clients break without counts, so upstream's stand in."""
    if receipt is None:
        counted = (last.prompt_tokens or 0, last.completion_tokens or 0)
        return dict(zip(("input_tokens", "output_tokens"), counted, strict=True))
    return {
        "input_tokens": receipt.usage.prompt_tokens,
        "output_tokens": receipt.usage.completion_tokens,
        "cost": receipt.cost_text,
        "currency": receipt.currency,
    }


class MessageRenderer:
    """Writes a message: blocks of thinking, of text and of tool calls, as they come."""

    content_type = "text/event-stream"

    def __init__(self, request: InferenceRequest, request_id: str) -> None:
        self.request = request
        self.request_id = request_id
        self.message_id = f"msg_{request_id.replace('-', '')}"
        self.calls = 0
        self._begun = False
        self._index = -1
        self._open = ""  # The kind of the block that is being written.

    # --- Whole ---

    def compact(self, chunk: Chunk) -> Chunk:
        return compact(chunk)

    def body(self, chunks: Sequence[Chunk], receipt: Receipt | None) -> bytes:
        last = chunks[-1]
        pieces = [piece for chunk in chunks for piece in self._pieces(chunk)]
        usage = usage_object(last, receipt)
        message = self._message(content(pieces), self._reason(last), usage)
        return json.dumps(message, allow_nan=False).encode()

    def _message(
        self, blocks: list[Block], reason: str | None, usage: dict[str, Any]
    ) -> dict[str, Any]:
        return {
            "id": self.message_id,
            "type": "message",
            "role": "assistant",
            "model": self.request.model,
            "content": blocks,
            "stop_reason": reason,
            "stop_sequence": None,
            "usage": usage,
        }

    def _reason(self, last: Chunk) -> str:
        """Return why the answer ended. The model server does not tell a stop sequence from an
        end, so both are an end."""
        if last.fields.get("done_reason") == "length":
            return "max_tokens"
        return "tool_use" if self.calls else "end_turn"

    # --- A stream ---

    def keepalive(self) -> bytes:
        return event("ping") if self._begun else self._begin()

    def chunk(self, chunk: Chunk) -> bytes:
        begin = b"" if self._begun else self._begin()
        return begin + b"".join(self._piece(kind, value) for kind, value in self._pieces(chunk))

    def last(self, chunk: Chunk, receipt: Receipt | None) -> bytes:
        events = self.chunk(chunk) + self._stop()
        delta = {"stop_reason": self._reason(chunk), "stop_sequence": None}
        usage = usage_object(chunk, receipt)
        return events + event("message_delta", delta=delta, usage=usage) + event("message_stop")

    def error(self, error: GatewayError) -> bytes:
        """Return the error, and leave the block and the message open: they are not complete."""
        return event("error", **error_object(error, self.request_id))

    def _begin(self) -> bytes:
        self._begun = True
        message = self._message([], None, NOT_YET_COUNTED)
        return event("message_start", message=message) + event("ping")

    def _piece(self, kind: str, value: Any) -> bytes:
        """Return the events of one piece; text and thinking go on in a block of their kind."""
        if kind == "tool_use":
            arguments = json.dumps(value["input"])
            begun = self._start(value | {"input": {}})
            return begun + self._delta("input_json", partial_json=arguments) + self._stop()
        begun = b"" if self._open == kind else self._start(EMPTY[kind])
        return begun + self._delta(kind, **{kind: value})

    def _start(self, block: Block) -> bytes:
        stopped = self._stop()
        self._index += 1
        self._open = block["type"]
        return stopped + event("content_block_start", index=self._index, content_block=block)

    def _delta(self, kind: str, **fields: str) -> bytes:
        delta = {"type": f"{kind}_delta", **fields}
        return event("content_block_delta", index=self._index, delta=delta)

    def _stop(self) -> bytes:
        """Return what closes the open block, if there is one."""
        if not self._open:
            return b""
        signed = self._delta("signature", signature="") if self._open == "thinking" else b""
        self._open = ""
        return signed + event("content_block_stop", index=self._index)

    # --- Pieces of either ---

    def _pieces(self, chunk: Chunk) -> Iterator[tuple[str, Any]]:
        """Yield what a chunk carries, each with the kind of its block."""
        if chunk.thinking:
            yield "thinking", chunk.thinking
        if chunk.text:
            yield "text", chunk.text
        for call in chunk.tool_calls:
            yield "tool_use", self._call(call)

    def _call(self, native: dict[str, Any]) -> Block:
        """Return a tool call; its id is ours if it has none."""
        function = native.get("function")
        function = function if isinstance(function, dict) else {}
        arguments = function.get("arguments")
        ours = f"toolu_{self.request_id.replace('-', '')}_{self.calls}"
        self.calls += 1
        return {
            "type": "tool_use",
            "id": str(native.get("id") or ours),
            "name": str(function.get("name", "")),
            "input": arguments if isinstance(arguments, dict) else {},
        }


def content(pieces: Sequence[tuple[str, Any]]) -> list[Block]:
    """Return the blocks that pieces make: neighbours of text or thinking are one block."""
    blocks: list[Block] = []
    for kind, group in groupby(pieces, key=itemgetter(0)):
        values = [piece for _kind, piece in group]
        blocks += values if kind == "tool_use" else [EMPTY[kind] | {kind: "".join(values)}]
    return blocks
