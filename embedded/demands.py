"""What a client asks for: an Ollama request's JSON object, checked and made a call. Pure."""

import json
from dataclasses import dataclass
from typing import Any, TypeVar

from embedded.engine import Call
from embedded.model import NAME, PREFIX, named
from embedded.options import Refused, read_options

Body = dict[str, Any]
T = TypeVar("T")

# llama-server's own error, which Ollama passes on as a text.
NO_EMBEDDINGS = {
    "code": 501,
    "message": "This server does not support embeddings. Start it with `--embeddings`",
    "type": "not_supported_error",
}
NO_IMAGES = "Multimodal data provided, but model does not support multimodal requests."

# A schema becomes a grammar that is tried at every token; a large one would stall the others.
SCHEMA_BYTES = 16 * 1024

WORDS = {str: "a string", bool: "a boolean", list: "an array", dict: "an object", int: "an integer"}


@dataclass(frozen=True, slots=True)
class Demand:
    """A response that was asked for; without a call, only that the model be loaded or unloaded.

    `truncate`: a prompt that is too long is cut to fit.
    """

    model: str
    stream: bool
    is_chat: bool
    call: Call | None
    truncate: bool = True
    unload: bool = False


@dataclass(frozen=True, slots=True)
class Texts:
    """Texts to embed."""

    model: str
    texts: list[str]
    truncate: bool
    dimensions: int


def read_generate(body: Body) -> Demand:
    """Return what a body of `/api/generate` asks for; raise Refused."""
    prompt = _take(body, "prompt", str, "")
    if not prompt and _unloads(body):
        name = _take(body, "model", str, "")
        known(name)  # Whatever the model can do.
        return Demand(name, False, False, None, unload=True)
    model = _our_writer(body, "generate")
    _refuse_the_impossible(body, model)
    if not prompt:
        return Demand(model, False, False, None)
    call = _call(body, **_generate_input(body, prompt))
    return Demand(model, *_manner(body, is_chat=False), call, _take(body, "truncate", bool, True))


def _manner(body: Body, *, is_chat: bool) -> tuple[bool, bool]:
    return _take(body, "stream", bool, True), is_chat


def _unloads(body: Body) -> bool:
    """Tell whether the model is to leave memory at once: a number, or a text with a unit."""
    keep_alive = body.get("keep_alive")
    if isinstance(keep_alive, str):
        return keep_alive.strip("hms") == "0"
    return keep_alive == 0 and not isinstance(keep_alive, bool)


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
    model = _our_writer(body, "chat")
    messages = _take(body, "messages", list, [])
    _refuse_the_impossible(body, model)
    if not messages:
        return Demand(model, False, True, None, unload=_unloads(body))
    call = _call(body, messages=[_message(message) for message in messages])
    return Demand(model, *_manner(body, is_chat=True), call, _take(body, "truncate", bool, True))


def _message(message: object) -> dict[str, str]:
    if not isinstance(message, dict):
        raise Refused(400, "each of messages must be an object")
    if message.get("images"):
        raise Refused(400, NO_IMAGES)
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
        raise Refused(400, f"{PREFIX}{NAME} does not support tools")
    if body.get("suffix"):
        raise Refused(400, f"{PREFIX}{NAME} does not support insert")
    if body.get("images"):
        raise Refused(400, NO_IMAGES)
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
    """Return the texts a body of `/api/embed` holds; raise Refused. No texts only load a model,
    whichever it is."""
    model = _known_to_embed(body)
    given = body.get("input")
    texts = [given] if isinstance(given, str) and given else given or []
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise Refused(400, "invalid input type")
    if texts:
        _require_embedder(model)
    truncate = _take(body, "truncate", bool, True)
    return Texts(model, [_clean(text) for text in texts], truncate, _dimensions(body))


def _dimensions(body: Body) -> int:
    # What is below one is ignored.
    return max(0, _take(body, "dimensions", int, 0))


def read_embeddings(body: Body) -> Texts:
    """Return the one text a body of the old `/api/embeddings` holds; raise Refused."""
    if not body.get("model"):
        raise Refused(400, "model is required")
    prompt = _take(body, "prompt", str, "")
    model = _known_to_embed(body)
    if prompt:
        _require_embedder(model)
    return Texts(model, [prompt] if prompt else [], True, 0)


def read_name(body: Body) -> str:
    """Return the model a request is about, under its new or its old key."""
    return _take(body, "model", str, "") or _take(body, "name", str, "")


def known(name: str) -> str:
    """Return the model a name is a spelling of; raise Refused."""
    found = named(name)
    if found is None:
        raise Refused(404, f"model '{name}' not found")
    return found


def _our_writer(body: Body, verb: str) -> str:
    name = _take(body, "model", str, "")
    if known(name) != NAME:
        raise _unable(name, verb)
    return name


def _known_to_embed(body: Body) -> str:
    name = _take(body, "model", str, "")
    if name and named(name) is None:
        raise Refused(404, f'model "{name}" not found, try pulling it first')
    known(name)
    return name


def _require_embedder(name: str) -> None:
    if known(name) == NAME:
        raise Refused(501, json.dumps({"error": NO_EMBEDDINGS}, separators=(",", ":")))


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
