"""What a client asks for: an Ollama request's JSON object, checked and made a call. Pure."""

import json
from dataclasses import dataclass
from typing import Any, TypeVar

from gateway.embedded.engine import Call
from gateway.embedded.model import FULL_NAME, is_ours
from gateway.embedded.options import Refused, read_options

Body = dict[str, Any]
T = TypeVar("T")

# A schema becomes a grammar that is tried at every token; a large one would stall the others.
SCHEMA_BYTES = 16 * 1024

WORDS = {str: "a string", bool: "a boolean", list: "an array", dict: "an object", int: "an integer"}


@dataclass(frozen=True, slots=True)
class Demand:
    """An answer that was asked for; without a call, only that the model be loaded."""

    model: str
    stream: bool
    is_chat: bool
    call: Call | None


@dataclass(frozen=True, slots=True)
class Texts:
    """Texts to embed."""

    model: str
    texts: list[str]
    truncate: bool
    dimensions: int


def read_generate(body: Body) -> Demand:
    """Return what a body of `/api/generate` asks for; raise Refused."""
    model = _our_model(body)
    prompt = _take(body, "prompt", str, "")
    _refuse_the_impossible(body, model)
    if not prompt:
        return Demand(model, False, False, None)
    call = _call(body, **_generate_input(body, prompt))
    return Demand(model, _take(body, "stream", bool, True), False, call)


def _generate_input(body: Body, prompt: str) -> Body:
    system = _take(body, "system", str, "")
    if not _take(body, "raw", bool, False):
        return {"messages": _conversation(("system", system), ("user", prompt))}
    if system:
        raise Refused(400, "raw mode does not support template, system, or context")
    return {"prompt": prompt}


def _conversation(*turns: tuple[str, str]) -> list[dict[str, str]]:
    return [{"role": role, "content": content} for role, content in turns if content]


def read_chat(body: Body) -> Demand:
    """Return what a body of `/api/chat` asks for; raise Refused."""
    if not body.get("model"):
        raise Refused(400, "model is required")
    model = _our_model(body)
    messages = _take(body, "messages", list, [])
    _refuse_the_impossible(body, model)
    if not messages:
        return Demand(model, False, True, None)
    call = _call(body, messages=[_message(message, model) for message in messages])
    return Demand(model, _take(body, "stream", bool, True), True, call)


def _message(message: object, model: str) -> dict[str, str]:
    if not isinstance(message, dict):
        raise Refused(400, "each of messages must be an object")
    if message.get("images"):
        raise _unable(model, "vision")
    role = _take(message, "role", str, "").lower()
    return {"role": role, "content": _take(message, "content", str, "")}


def _call(body: Body, **source: Any) -> Call:
    return Call(
        sampling=read_options(_take(body, "options", dict, {})),
        schema=_schema(body.get("format")),
        top_logprobs=_top_logprobs(body),
        **source,
    )


def _refuse_the_impossible(body: Body, model: str) -> None:
    if body.get("tools"):
        raise Refused(400, f"{FULL_NAME} does not support tools")
    if body.get("suffix"):
        raise Refused(400, f"{FULL_NAME} does not support insert")
    if body.get("images"):
        raise _unable(model, "vision")
    if body.get("think"):
        raise _unable(model, "thinking")
    for field_name in ("template", "context"):
        if body.get(field_name):
            raise _unable(model, field_name)


def _unable(model: str, what: str) -> Refused:
    return Refused(400, f'"{model}" does not support {what}')


def _schema(format_: object) -> dict[str, Any] | None:
    if format_ is None or format_ == "":
        return None
    if format_ == "json":
        return {"type": "object"}
    if not isinstance(format_, dict):
        text = f'invalid format: {json.dumps(format_)}; expected "json" or a valid JSON Schema'
        raise Refused(500, text)
    if len(json.dumps(format_)) > SCHEMA_BYTES:
        raise Refused(400, f"the schema in format is larger than {SCHEMA_BYTES} bytes")
    return format_


def _top_logprobs(body: Body) -> int | None:
    top = _take(body, "top_logprobs", int, 0)
    if not 0 <= top <= 20:
        raise Refused(400, "top_logprobs must be between 0 and 20")
    return top if _take(body, "logprobs", bool, False) else None


def read_embed(body: Body) -> Texts:
    """Return the texts a body of `/api/embed` holds; raise Refused."""
    model = _our_embedder(body)
    given = body.get("input")
    texts = [given] if isinstance(given, str) and given else given or []
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise Refused(400, "invalid input type")
    truncate = _take(body, "truncate", bool, True)
    return Texts(model, [_clean(text) for text in texts], truncate, _dimensions(body))


def _dimensions(body: Body) -> int:
    dimensions = _take(body, "dimensions", int, 0)
    if dimensions < 0:
        raise Refused(400, "dimensions must not be negative")
    return dimensions


def read_embeddings(body: Body) -> Texts:
    """Return the one text a body of the old `/api/embeddings` holds; raise Refused."""
    if not body.get("model"):
        raise Refused(400, "model is required")
    prompt = _take(body, "prompt", str, "")
    return Texts(_our_embedder(body), [prompt] if prompt else [], True, 0)


def read_name(body: Body) -> str:
    """Return the model a request is about, under its new or its old key."""
    return _take(body, "model", str, "") or _take(body, "name", str, "")


def require_ours(name: str) -> None:
    """Raise Refused where the name is not that of the one model."""
    if not is_ours(name):
        raise Refused(404, f"model '{name}' not found")


def _our_model(body: Body) -> str:
    name = _take(body, "model", str, "")
    require_ours(name)
    return name


def _our_embedder(body: Body) -> str:
    name = _take(body, "model", str, "")
    if name and not is_ours(name):
        raise Refused(404, f'model "{name}" not found, try pulling it first')
    require_ours(name)
    return name


def _take(body: Body, key: str, kind: type[T], default: T) -> T:
    value = body.get(key)
    if value is None:
        return default
    if type(value) is not kind:
        raise Refused(400, f"{key} must be {WORDS[kind]}")
    return _clean(value) if isinstance(value, str) else value  # type: ignore[return-value]


def _clean(text: str) -> str:
    """Replace halves of surrogate pairs, which JSON can spell and UTF-8 cannot, as Go does."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
