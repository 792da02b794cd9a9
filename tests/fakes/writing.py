"""How a healthy Ollama generates: streamed or not, with reasoning, tool calls and counts."""

from collections.abc import Mapping, Sequence
from typing import Any

from tests.fakes import faults, refusals
from tests.fakes.kinds import CONTEXT, Kind, full_name
from tests.fakes.script import CREATED_AT, Line, Step, error_line, reply, tokens

WORDS = ("The", " sky", " is", " blue", " because", " of", " Rayleigh", " scattering", ".")
THOUGHTS = ("Hm", ",", " light", ".")
JSON_WORDS = ("{", '"a"', ":", "1", "}")
# Nanoseconds to process a prompt: the first time, and from the cache.
READ_NS, CACHED_NS = 100_000_000, 1_000_000

Script = list[Step]
Body = dict[str, Any]


def write(path: str, body: Body, name: str, asked: str, *, is_cached: bool = False) -> Script:
    """The response of a model to a request."""
    kind = Kind(full_name(name))
    if not asked.strip() and body.get("keep_alive") == 0:
        return _load(path, body, name)  # Whatever the model can do.
    if refused := refusals.of_writing(path, body, name):
        return refused
    if not asked.strip():
        return _load(path, body, name)
    count = len(asked.split())
    if refused := refusals.of_images(body, kind) or refusals.of_length(body, kind, count):
        return refused
    facts: Body = {
        "path": path,
        "model": name,
        # Rendered mode cuts a message that is too long to half the context.
        "prompt": count if count <= CONTEXT else CONTEXT // 2 + 2,
        "prompt_eval_duration": CACHED_NS if is_cached else READ_NS,
    }
    thoughts = THOUGHTS if kind.thinks_aloud and body.get("think") is not False else ()
    if refusals.is_bad_schema(body):
        return _bad_schema(body, kind, thoughts, facts)
    if calls := _calls(body, asked, kind):
        return _call(body, calls, kind, facts)
    if _repeats(asked) and not (kind.native and path == "/api/chat"):
        return _guarded(body, facts)
    return _say(body, thoughts, kind, facts)


def _load(path: str, body: Body, name: str) -> Script:
    """An empty prompt only loads the model, or unloads it: one object without any metric."""
    reason = "unload" if body.get("keep_alive") == 0 else "load"
    said: Body = {"response": ""}
    if path == "/api/chat":
        said = {"message": {"role": "assistant", "content": ""}}
    about = {"model": name, "created_at": CREATED_AT}
    return reply({**about, **said, "done": True, "done_reason": reason})


def _say(body: Body, thoughts: Sequence[str], kind: Kind, facts: Body) -> Script:
    has_format = bool(body.get("format"))
    words = _words(body, kind, JSON_WORDS if has_format and thoughts else WORDS)
    counted = len(words) + len(thoughts)
    if has_format and thoughts:
        # Two passes: the second reads what the first one thought, and is the one that is counted.
        counted, facts["prompt"] = len(words), facts["prompt"] + len(thoughts)
    facts["reason"] = "length" if _is_cut(body, words) else "stop"
    facts["count"] = counted
    if facts["path"] == "/api/generate" and not body.get("raw"):
        facts["context"] = [1, 2, 3]
    if body.get("stream") is False:
        return _whole(words, thoughts, facts)
    return tokens(words, thinking=thoughts, **facts)


def _words(body: Body, kind: Kind, words: Sequence[str]) -> Sequence[str]:
    options = body.get("options") or {}
    limit = options.get("num_predict")
    limit = -1 if limit is None else int(limit)
    if limit == 0:
        # Rendered mode leaves a limit of 0 out.
        limit = 1 if kind.native else -1
    for stop in options.get("stop") or ():
        words = _before(stop, words)
    return words if limit < 0 else words[:limit]


def _before(stop: str, words: Sequence[str]) -> Sequence[str]:
    """Return the words before a stop string, which may be within a word."""
    found = next((n for n, word in enumerate(words) if stop in word), len(words))
    rest = [word.partition(stop)[0] for word in words[found : found + 1]]
    return [*words[:found], *(part for part in rest if part)]


def _is_cut(body: Body, words: Sequence[str]) -> bool:
    limit = (body.get("options") or {}).get("num_predict")
    return limit is not None and len(words) in (int(limit), 1) and len(words) < len(WORDS)


def _whole(words: Sequence[str], thoughts: Sequence[str], facts: Body) -> Script:
    """Return the same response as one object."""
    last = tokens([], **facts)[-1]
    assert isinstance(last, Line) and isinstance(last.content, Mapping)
    thinking = {"thinking": "".join(thoughts)} if thoughts else {}
    text = "".join(words)
    if facts["path"] == "/api/chat":
        message = {"role": "assistant", "content": text, **thinking}
        return reply({**last.content, "message": message})
    return reply({**last.content, "response": text, **thinking})


def _bad_schema(body: Body, kind: Kind, thoughts: Sequence[str], facts: Body) -> Script:
    """A model reasons before its schema is compiled."""
    if not thoughts or body.get("stream") is False:
        return refusals.bad_schema(kind)
    text = refusals.text_of(refusals.bad_schema(kind))
    shape = {name: facts[name] for name in ("path", "model")}
    return [*tokens([], thinking=thoughts, done=False, **shape), error_line(text)]


# --- Tool calls -----------------------------------------------------------------------------


def _calls(body: Body, asked: str, kind: Kind) -> list[Body]:
    """Return a call of the first tool, unless the prompt contains a tool's result."""
    if any(message.get("role") == "tool" for message in body.get("messages") or []):
        return []
    names = [tool.get("function", {}).get("name", "") for tool in body.get("tools") or []]
    named = [name for name in names if name and name in asked]
    call_id = "0123456789abcdefghijABCDEFGHIJ01" if kind.native else "call_ab12cd34"
    return [
        {"id": call_id, "function": {"index": 0, "name": name, "arguments": {"city": "Paris"}}}
        for name in named[:1]
    ]


def _call(body: Body, calls: list[Body], kind: Kind, facts: Body) -> Script:
    """Rendered mode tells a call in a chunk of its own, native mode in the line that is done."""
    streamed = tokens([], tool_calls=calls, count=12, **facts)
    if not kind.native and body.get("stream") is not False:
        return streamed
    last = streamed[-1]
    assert isinstance(last, Line) and isinstance(last.content, Mapping)
    message = {**last.content["message"], "tool_calls": calls}
    content = {**last.content, "message": message}
    return reply(content) if body.get("stream") is False else [Line(content)]


# --- Repetition -----------------------------------------------------------------------------


def _repeats(asked: str) -> bool:
    """Tell whether a prompt makes the model repeat itself."""
    words = asked.split()
    runs = zip(*(words[n:] for n in range(faults.REPEATS)), strict=False)
    return any(len(set(run)) == 1 for run in runs)


def _guarded(body: Body, facts: Body) -> Script:
    shape = {name: facts[name] for name in ("path", "model")}
    if body.get("stream") is False:
        return faults.clean_end_of_whole([" a"] * (faults.REPEATS + 1), **shape)
    return faults.repeat_guard(" a", **shape)
