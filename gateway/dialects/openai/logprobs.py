"""Write the probabilities of tokens as OpenAI's clients read them. Pure."""

from collections.abc import Sequence
from typing import Any

from gateway.chunk import Chunk


def entries(chunk: Chunk) -> list[dict[str, Any]]:
    """Return the tokens of a chunk's text; those of thinking and tool calls are not asked for."""
    if not chunk.text and (chunk.thinking or chunk.tool_calls):
        return []
    return [_entry(native) for native in _objects(chunk.fields.get("logprobs"))]


def _entry(native: dict[str, Any]) -> dict[str, Any]:
    return _token(native) | {
        "top_logprobs": [_token(t) for t in _objects(native.get("top_logprobs"))]
    }


def _token(native: dict[str, Any]) -> dict[str, Any]:
    token = str(native.get("token", ""))
    return {
        "token": token,
        "logprob": native.get("logprob", 0.0),
        "bytes": native.get("bytes") or list(token.encode("utf-8", "surrogatepass")),
    }


def _objects(value: Any) -> list[dict[str, Any]]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def of_chat(chunks: Sequence[Chunk]) -> dict[str, Any] | None:
    """Return the `logprobs` of a chat choice, None where there are none."""
    found = [entry for chunk in chunks for entry in entries(chunk)]
    return {"content": found, "refusal": None} if found else None


def of_completion(chunks: Sequence[Chunk], offset: int = 0) -> dict[str, Any] | None:
    """Return the `logprobs` of a text choice, whose text begins at an offset of the whole."""
    found = [entry for chunk in chunks for entry in entries(chunk)]
    if not found:
        return None
    tops = [{top["token"]: top["logprob"] for top in entry["top_logprobs"]} for entry in found]
    offsets = [offset]
    for entry in found[:-1]:
        offsets.append(offsets[-1] + len(entry["token"]))
    return {
        "tokens": [entry["token"] for entry in found],
        "token_logprobs": [entry["logprob"] for entry in found],
        "top_logprobs": tops,
        "text_offset": offsets,
    }
