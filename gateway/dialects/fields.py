"""Fields that several client families read and write. Pure."""

from collections.abc import Iterable, Sequence
from typing import Any

from gateway.dialects.json_fragments import Items, dump, items, joined_items, one_part
from gateway.errors import BadRequest, GatewayError
from gateway.metering import Operation, Receipt
from gateway.upstream.chunk import Chunk, objects


def model_of(body: dict[str, Any]) -> str:
    """Return the model a body names, by `model` or the older `name`; raise BadRequest."""
    model = body.get("model") or body.get("name")
    if not isinstance(model, str) or not model.strip():
        raise BadRequest("model is required")
    return model


def wants_stream(body: dict[str, Any], *, default: bool) -> bool:
    stream = body.get("stream")
    if stream is None:
        return default
    if not isinstance(stream, bool):
        raise BadRequest("'stream' must be true or false.")
    return stream


def joined(operation: Operation, chunks: Sequence[Chunk]) -> dict[str, Any]:
    """Return the content of all chunks, as one native object holds it."""
    parts: dict[str, Any] = {"thinking": "".join(chunk.thinking for chunk in chunks)}
    parts["tool_calls"] = [call for chunk in chunks for call in chunk.tool_calls]
    parts = {name: value for name, value in parts.items() if value}
    text = "".join(chunk.text for chunk in chunks)
    entries = probabilities(chunks)
    extra = {"logprobs": entries} if entries else {}
    if operation is Operation.GENERATE:
        return {"response": text, **parts, **extra}
    return {"message": {"role": "assistant", "content": text, **parts}, **extra}


def probabilities(chunks: Iterable[Chunk]) -> Items:
    """Return the probabilities of chunks, kept or not, as the model server gave them."""
    given = (chunk.fields.get("logprobs") for chunk in chunks)
    return joined_items(given, lambda value: one_part(objects(value)))


def vectors(chunks: Iterable[Chunk]) -> Items:
    """Return the vectors of chunks, kept or not, a part for each."""
    return joined_items((chunk.fields.get("embeddings", []) for chunk in chunks), items)


def usage_object(receipt: Receipt | None) -> dict[str, Any]:
    """Return the `usage` of an answer: token counts, and the exact cost as a decimal string."""
    if receipt is None:
        return {}
    usage = receipt.usage
    return {
        "usage": {
            "prompt_tokens": usage.prompt_tokens,
            "completion_tokens": usage.completion_tokens,
            "total_tokens": usage.total_tokens,
            "cost": receipt.cost_text,
            "currency": receipt.currency,
        }
    }


def error_object(error: GatewayError, request_id: str) -> dict[str, Any]:
    """Return an error as Ollama's clients read it: `error` is a string, the rest is extra."""
    fields = {"error": error.message, "code": error.code, "request_id": request_id}
    return fields | error.details


def json_line(value: dict[str, Any]) -> bytes:
    """Return one object as a line. All but ASCII is escaped: clients that split lines the way
    Python's splitlines does break at a bare U+0085."""
    return dump(value, separators=(",", ":")) + b"\n"
