"""Ollama's own family: how the model server speaks, and its clients too.

Facts: one JSON object and a newline per chunk; the last one has `done: true` and the counts; a
broken stream ends with `{"error": "…"}`. The official clients fail on blank lines and on a good
chunk that merely has an `error` key, and stop reading at the first `done: true`.
"""

import json
import math
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from gateway import upstream_errors
from gateway.chunk import Chunk
from gateway.errors import BadRequest, GatewayError, UpstreamBroke
from gateway.metering import Receipt
from gateway.prompt import Operation, Prompt
from gateway.rules import refuse_lookalikes
from gateway.usage import counts
from gateway.written import Items, dump, items, joined_items, kept, one_part

# Where a model of the operator's really runs is nobody's business; the rest is debugging.
PRIVATE = ("remote_model", "remote_host", "_debug_info", "error")
STREAMS_BY_DEFAULT = {Operation.GENERATE, Operation.CHAT}


# --- Requests --------------------------------------------------------------------------------


class OllamaDialect:
    """Requests and answers as Ollama's own API has them."""

    def parse(self, operation: Operation, body: dict[str, Any]) -> Prompt:
        refuse_lookalikes(body)
        return Prompt(
            operation=operation,
            model=model_of(body),
            stream=wants_stream(body, default=operation in STREAMS_BY_DEFAULT),
            fields=body,
        )

    def renderer(self, prompt: Prompt, request_id: str) -> "OllamaRenderer":
        return OllamaRenderer(prompt, request_id)

    def error(self, error: GatewayError, request_id: str) -> bytes:
        found = error_object(error, request_id)
        # The command `ollama` shows `status` of a 401; without, it points to the server's log.
        return json_line(found | {"status": error.message} if error.status == 401 else found)


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


def is_load_request(prompt: Prompt) -> bool:
    """Tell whether a prompt asks for nothing but that the model be loaded."""
    asked = {
        Operation.GENERATE: "prompt",
        Operation.CHAT: "messages",
        Operation.EMBED: "input",
    }
    return not prompt.fields.get(asked[prompt.operation])


# Zero in any unit, as Go writes durations: no digit but zeros.
_ZERO = re.compile(r"[+-]?[0.nuµμmsh]{1,32}")


def is_unload_request(prompt: Prompt) -> bool:
    """Tell whether a prompt that asks for nothing has the model leave the memory."""
    keep_alive = prompt.fields.get("keep_alive")
    if isinstance(keep_alive, str):
        return "0" in keep_alive and _ZERO.fullmatch(keep_alive) is not None
    return not isinstance(keep_alive, bool) and keep_alive in (0, 0.0)


def loaded(prompt: Prompt, created_at: str) -> Chunk:
    """Return the answer to a request that only loads or unloads a model."""
    operation, reason = prompt.operation, "unload" if is_unload_request(prompt) else "load"
    native: dict[str, Any] = {"created_at": created_at, "done": True, "done_reason": reason}
    if operation is Operation.EMBED:
        native = {"embeddings": []}
    elif operation is Operation.CHAT:
        native["message"] = {"role": "assistant", "content": ""}
    else:
        native["response"] = ""
    return Chunk(done=True, fields=native)


# --- Upstream's lines ---------------------------------------------------------------------------


def read_chunk(operation: Operation, line: bytes, model: str = "") -> Chunk:
    """Read one line of the model server; raise UpstreamBroke for nonsense, and what an error line
    means."""
    native = _native(line, _finite if operation is not Operation.EMBED else None)
    if native.get("error"):
        raise upstream_errors.from_line(native["error"], model)
    if operation is Operation.EMBED:
        if not (_are_vectors(native.get("embeddings")) and _all_finite(native.values())):
            raise UpstreamBroke()
        return Chunk(done=True, prompt_tokens=counts(native)[0], completion_tokens=0, fields=native)
    return _text_chunk(native)


def _text_chunk(native: dict[str, Any]) -> Chunk:
    message = native.get("message") or {}
    if not isinstance(message, dict):
        raise UpstreamBroke()
    prompt_tokens, completion_tokens = counts(native)
    return Chunk(
        text=_string(native.get("response")) + _string(message.get("content")),
        thinking=_string(native.get("thinking")) + _string(message.get("thinking")),
        tool_calls=_objects(native.get("tool_calls")) + _objects(message.get("tool_calls")),
        done=native.get("done") is True,
        prompt_tokens=prompt_tokens,
        completion_tokens=completion_tokens,
        fields=native,
    )


def cut_short(chunk: Chunk) -> Chunk:
    """Return a last chunk like another one: for a model server that writes beyond its limit, and
    for one that ends a response without a last line."""
    kept = ("model", "created_at")
    native: dict[str, Any] = {name: chunk.fields[name] for name in kept if name in chunk.fields}
    native |= {"done": True, "done_reason": "length"}
    if "message" in chunk.fields:
        native["message"] = {"role": "assistant", "content": ""}
    else:
        native["response"] = ""
    return Chunk(done=True, fields=native)


def _are_vectors(value: Any) -> bool:
    """Tell whether a value is a list of vectors. Their sums tell of each number whether it is one:
    a look at every number by itself would take as long as reading them."""
    if not isinstance(value, list) or not all(isinstance(one, list) for one in value):
        return False
    try:
        return _all_finite([sum(vector) for vector in value])
    except (TypeError, OverflowError):
        return False


def _all_finite(values: Iterable[Any]) -> bool:
    return all(math.isfinite(value) for value in values if isinstance(value, float))


def _native(line: bytes, read_float: Callable[[str], float] | None = None) -> dict[str, Any]:
    try:
        native = json.loads(line, parse_constant=_no_constant, parse_float=read_float)
    except (ValueError, RecursionError):
        raise UpstreamBroke() from None
    if not isinstance(native, dict):
        raise UpstreamBroke()
    return native


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")


def _finite(text: str) -> float:
    """Read a number; raise ValueError for one that is too large, such as 1e999."""
    value = float(text)
    if math.isinf(value):
        raise ValueError("a number is too large")
    return value


def _string(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _objects(value: Any) -> list[dict[str, Any]]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


# --- Answers ---------------------------------------------------------------------------------


class OllamaRenderer:
    """Passes native objects on, with the client's own spelling of the model and the usage."""

    content_type = "application/x-ndjson"
    keeps_alive = False  # A blank line or a comment breaks the clients of this family.

    def __init__(self, prompt: Prompt, request_id: str) -> None:
        self.prompt = prompt
        self.request_id = request_id

    def idle(self) -> bytes:
        return b""

    def chunk(self, chunk: Chunk) -> bytes:
        return json_line(self._public(chunk))

    def last(self, chunk: Chunk, receipt: Receipt | None) -> bytes:
        return json_line(self._public(chunk) | usage_object(receipt))

    def failure(self, error: GatewayError) -> bytes:
        return json_line(error_object(error, self.request_id))

    def kept(self, chunk: Chunk) -> Chunk:
        return kept(chunk, logprobs=probabilities([chunk]), embeddings=vectors([chunk]))

    def whole(self, chunks: Sequence[Chunk], receipt: Receipt | None) -> bytes:
        answer = self._public(chunks[-1])
        if self.prompt.operation is Operation.EMBED:
            answer |= {"embeddings": vectors(chunks)}
        else:
            answer |= joined(self.prompt.operation, chunks)
        return json_line(answer | usage_object(receipt))

    def _public(self, chunk: Chunk) -> dict[str, Any]:
        hidden = (*PRIVATE, "model")
        shown = {name: value for name, value in chunk.fields.items() if name not in hidden}
        return {"model": self.prompt.model, **shown}


def joined(operation: Operation, chunks: Sequence[Chunk]) -> dict[str, Any]:
    """Return what the pieces of an answer say together, as a native object has it."""
    said: dict[str, Any] = {"thinking": "".join(chunk.thinking for chunk in chunks)}
    said["tool_calls"] = [call for chunk in chunks for call in chunk.tool_calls]
    said = {name: value for name, value in said.items() if value}
    text = "".join(chunk.text for chunk in chunks)
    entries = probabilities(chunks)
    extra = {"logprobs": entries} if entries else {}
    if operation is Operation.GENERATE:
        return {"response": text, **said, **extra}
    return {"message": {"role": "assistant", "content": text, **said}, **extra}


def probabilities(chunks: Iterable[Chunk]) -> Items:
    """Return the probabilities of chunks, kept or not, as the model server gave them."""
    given = (chunk.fields.get("logprobs") for chunk in chunks)
    return joined_items(given, lambda value: one_part(_objects(value)))


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
            "cost": f"{receipt.cost:f}",
            "currency": receipt.currency,
        }
    }


def error_object(error: GatewayError, request_id: str) -> dict[str, Any]:
    """Return an error as Ollama's clients read it: `error` is a string, the rest is extra."""
    found = {"error": error.message, "code": error.code, "request_id": request_id}
    return found | error.details


def json_line(value: dict[str, Any]) -> bytes:
    """Return one object as a line. All but ASCII is escaped: clients that split lines the way
    Python's splitlines does break at a bare U+0085."""
    return dump(value, separators=(",", ":")) + b"\n"


# --- The older embeddings route -----------------------------------------------------------------


class LegacyEmbeddingsDialect(OllamaDialect):
    """`/api/embeddings`: one `prompt`, one vector. Ollama's own gives no counts, so it is served
    by `/api/embed` upstream."""

    def parse(self, operation: Operation, body: dict[str, Any]) -> Prompt:
        prompt = body.get("prompt")
        if not isinstance(prompt, str | None):
            raise BadRequest("'prompt' must be a string.")
        return super().parse(operation, {**body, "input": prompt, "stream": False})

    def renderer(self, prompt: Prompt, request_id: str) -> "OllamaRenderer":
        return LegacyEmbeddingsRenderer(prompt, request_id)


class LegacyEmbeddingsRenderer(OllamaRenderer):
    """Writes the one vector under the older name."""

    def whole(self, chunks: Sequence[Chunk], receipt: Receipt | None) -> bytes:
        found = vectors(chunks).parts
        return json_line({"embedding": found[0] if found else []} | usage_object(receipt))


# --- Pulling a model ------------------------------------------------------------------------------


def read_progress(model: str, line: bytes) -> Chunk:
    """Read one line of a pull; raise ModelNotFound or RegistryUnreachable for an error line."""
    native = _native(line)
    if native.get("error"):
        raise upstream_errors.from_pull(native["error"], model)
    return Chunk(done=native.get("status") == "success", fields=native)


class ProgressRenderer(OllamaRenderer):
    """Passes the progress of a pull on; it has no model to echo and costs nothing."""

    def whole(self, chunks: Sequence[Chunk], receipt: Receipt | None) -> bytes:
        return self.last(chunks[-1], receipt)

    def _public(self, chunk: Chunk) -> dict[str, Any]:
        return {name: value for name, value in chunk.fields.items() if name not in PRIVATE}
