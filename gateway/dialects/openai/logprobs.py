"""Write the probabilities of tokens as OpenAI's clients read them. Pure."""

from collections.abc import Sequence
from typing import Any

from gateway.dialects.json_fragments import Items, compact, joined_items, one_part
from gateway.upstream.chunk import Chunk

# The lists of a text choice's `logprobs`, and the lengths that its offsets come from.
COLUMNS = ("tokens", "token_logprobs", "top_logprobs")


def _entries(chunk: Chunk) -> list[dict[str, Any]]:
    """Return the tokens of a chunk's text; those of thinking and tool calls are not asked for."""
    if not chunk.text and (chunk.thinking or chunk.tool_calls):
        return []
    return [_entry(native) for native in _objects(chunk.fields.get("logprobs"))]


def entries(chunk: Chunk) -> Items:
    """Return the tokens of the text of a chunk, kept or not."""
    found = chunk.fields.get("logprobs")
    return found if isinstance(found, Items) else one_part(_entries(chunk))


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
    found = joined_items(map(entries, chunks), one_part)
    return {"content": found, "refusal": None} if found else None


def keep_entries(chunk: Chunk) -> Chunk:
    """Return a chunk that keeps the tokens of its text for a chat choice or a response."""
    return compact(chunk, logprobs=entries(chunk))


def keep_columns(chunk: Chunk) -> Chunk:
    """Return a chunk that keeps the tokens of its text for a text choice."""
    found = _entries(chunk)
    lengths = [len(entry["token"]) for entry in found]
    return compact(chunk, lengths=lengths, **_columns(found))


def of_completion(chunks: Sequence[Chunk], offset: int = 0) -> dict[str, Any] | None:
    """Return the `logprobs` of a text choice, whose text begins at an offset of the whole."""
    columns = [c.fields if "lengths" in c.fields else keep_columns(c).fields for c in chunks]
    columns = [column for column in columns if "lengths" in column]
    if not columns:
        return None
    offsets = [offset]
    for length in [length for column in columns for length in column["lengths"]][:-1]:
        offsets.append(offsets[-1] + length)
    found = {name: joined_items((column[name] for column in columns), one_part) for name in COLUMNS}
    return {**found, "text_offset": offsets}


def _columns(entries: list[dict[str, Any]]) -> dict[str, Items]:
    tops = [{top["token"]: top["logprob"] for top in entry["top_logprobs"]} for entry in entries]
    return {
        "tokens": one_part([entry["token"] for entry in entries]),
        "token_logprobs": one_part([entry["logprob"] for entry in entries]),
        "top_logprobs": one_part(tops),
    }
