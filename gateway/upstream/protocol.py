"""Read the lines that Ollama writes. Pure.

Ollama writes one JSON object and a newline for each chunk. The last chunk has `done: true` and the
counts. A stream that fails ends with `{"error": "…"}`.
"""

import json
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from gateway.errors import UpstreamBroke
from gateway.metering import Operation
from gateway.upstream import error_mapping
from gateway.upstream.chunk import Chunk, objects

# No model reads this much at once; a larger count is a fault, not a bill.
MAX_BELIEVABLE = 20_000_000


def read_chunk(operation: Operation, line: bytes, model: str = "") -> Chunk:
    """Read one line of the model server; raise UpstreamBroke for nonsense, and what an error line
    means."""
    native = _native(line, _finite if operation is not Operation.EMBED else None)
    if native.get("error"):
        raise error_mapping.from_line(native["error"], model)
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
        tool_calls=objects(native.get("tool_calls")) + objects(message.get("tool_calls")),
        done=native.get("done") is True,
        prompt_tokens=prompt_tokens,
        completion_tokens=completion_tokens,
        fields=native,
    )


def truncated(chunk: Chunk) -> Chunk:
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


def read_progress(model: str, line: bytes) -> Chunk:
    """Read one line of a pull; raise ModelNotFound or RegistryUnreachable for an error line."""
    native = _native(line)
    if native.get("error"):
        raise error_mapping.from_pull(native["error"], model)
    return Chunk(done=native.get("status") == "success", fields=native)


def counts(native: Mapping[str, Any]) -> tuple[int | None, int | None]:
    """Return the prompt and completion counts of a native object, None where it has none."""
    return _believable(native.get("prompt_eval_count")), _believable(native.get("eval_count"))


def _believable(count: Any) -> int | None:
    if isinstance(count, bool) or not isinstance(count, int):
        return None
    return count if 0 <= count <= MAX_BELIEVABLE else None
