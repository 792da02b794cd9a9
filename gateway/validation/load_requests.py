"""Requests without a prompt, which load a model or unload it. Pure."""

import re
from typing import Any

from gateway.metering import Operation
from gateway.upstream.chunk import Chunk
from gateway.validation.inference_request import InferenceRequest


def is_load_request(request: InferenceRequest) -> bool:
    """Tell whether a request has no prompt: it only loads or unloads the model."""
    asked = {
        Operation.GENERATE: "prompt",
        Operation.CHAT: "messages",
        Operation.EMBED: "input",
    }
    return not request.payload.get(asked[request.operation])


# Zero in any unit, as Go writes durations: no digit but zeros.
_ZERO = re.compile(r"[+-]?[0.nuµμmsh]{1,32}")


def is_unload_request(request: InferenceRequest) -> bool:
    """Tell whether a request without a prompt unloads the model."""
    keep_alive = request.payload.get("keep_alive")
    if isinstance(keep_alive, str):
        return "0" in keep_alive and _ZERO.fullmatch(keep_alive) is not None
    return not isinstance(keep_alive, bool) and keep_alive in (0, 0.0)


def loaded(request: InferenceRequest, created_at: str) -> Chunk:
    """Return the response to a request that only loads or unloads a model."""
    operation, reason = request.operation, "unload" if is_unload_request(request) else "load"
    native: dict[str, Any] = {"created_at": created_at, "done": True, "done_reason": reason}
    if operation is Operation.EMBED:
        native = {"embeddings": []}
    elif operation is Operation.CHAT:
        native["message"] = {"role": "assistant", "content": ""}
    else:
        native["response"] = ""
    return Chunk(done=True, fields=native)
