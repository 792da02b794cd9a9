"""Check the JSON object of an Ollama request and turn it into a call of the engine. Pure."""

import json
from dataclasses import dataclass
from typing import Any, TypeVar

from embedded.engine import Call
from embedded.model import NAME, PREFIX, named
from embedded.options import Rejected, read_options

Body = dict[str, Any]
T = TypeVar("T")

# llama-server's error, which Ollama passes on as a string.
NO_EMBEDDINGS = {
    "code": 501,
    "message": "This server does not support embeddings. Start it with `--embeddings`",
    "type": "not_supported_error",
}
NO_IMAGES = "Multimodal data provided, but model does not support multimodal requests."

# llama.cpp tests a grammar made of the schema at every token; a large one would delay the others.
SCHEMA_BYTES = 16 * 1024

WORDS = {str: "a string", bool: "a boolean", list: "an array", dict: "an object", int: "an integer"}


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """A request to generate text. Without a call it only loads or unloads the model.

    `truncate`: a prompt that is too long is cut to fit.
    """

    model: str
    stream: bool
    is_chat: bool
    call: Call | None
    truncate: bool = True
    unload: bool = False


@dataclass(frozen=True, slots=True)
class EmbeddingRequest:
    """Texts to embed."""

    model: str
    texts: list[str]
    truncate: bool
    dimensions: int


def parse_generate(body: Body) -> GenerationRequest:
    """Return the request in a body of `/api/generate`; raise Rejected."""
    prompt = _take(body, "prompt", str, "")
    if not prompt and _unloads(body):
        name = _take(body, "model", str, "")
        known(name)  # Any model can be unloaded.
        return GenerationRequest(name, False, False, None, unload=True)
    model = _generating_model(body, "generate")
    _reject_unsupported(body, model)
    if not prompt:
        return GenerationRequest(model, False, False, None)
    call = _call(body, **_generate_input(body, prompt))
    return _request(body, model, call, is_chat=False)


def _request(body: Body, model: str, call: Call, *, is_chat: bool) -> GenerationRequest:
    stream, truncate = (_take(body, key, bool, True) for key in ("stream", "truncate"))
    return GenerationRequest(model, stream, is_chat, call, truncate)


def _unloads(body: Body) -> bool:
    """Tell whether `keep_alive` is zero: a number, or a string with a unit."""
    keep_alive = body.get("keep_alive")
    if isinstance(keep_alive, str):
        return keep_alive.strip("hms") == "0"
    return keep_alive == 0 and not isinstance(keep_alive, bool)


def _generate_input(body: Body, prompt: str) -> Body:
    system = _take(body, "system", str, "")
    if not _take(body, "raw", bool, False):
        return {"messages": _messages(("system", system), ("user", prompt))}
    if system:
        raise Rejected(400, "raw mode does not support template, system, or context")
    return {"prompt": prompt}


def _messages(*turns: tuple[str, str]) -> list[dict[str, str]]:
    return [{"role": role, "content": content} for role, content in turns if content]


def parse_chat(body: Body) -> GenerationRequest:
    """Return the request in a body of `/api/chat`; raise Rejected."""
    if not body.get("model"):
        raise Rejected(400, "model is required")
    model = _generating_model(body, "chat")
    messages = _take(body, "messages", list, [])
    _reject_unsupported(body, model)
    if not messages:
        return GenerationRequest(model, False, True, None, unload=_unloads(body))
    call = _call(body, messages=[_message(message) for message in messages])
    return _request(body, model, call, is_chat=True)


def _message(message: object) -> dict[str, str]:
    if not isinstance(message, dict):
        raise Rejected(400, "each of messages must be an object")
    if message.get("images"):
        raise Rejected(400, NO_IMAGES)
    role = _take(message, "role", str, "").lower()
    return {"role": role, "content": _take(message, "content", str, "")}


def _call(body: Body, **source: Any) -> Call:
    return Call(
        sampling=read_options(_take(body, "options", dict, {})),
        schema=_schema(body.get("format")),
        top_logprobs=_top_logprobs(body),
        **source,
    )


def _reject_unsupported(body: Body, model: str) -> None:
    if body.get("tools"):
        raise Rejected(400, f"{PREFIX}{NAME} does not support tools")
    if body.get("suffix"):
        raise Rejected(400, f"{PREFIX}{NAME} does not support insert")
    if body.get("images"):
        raise Rejected(400, NO_IMAGES)
    if body.get("think"):
        raise _unsupported(model, "thinking")
    for field_name in ("template", "context"):
        if body.get(field_name):
            raise _unsupported(model, field_name)


def _unsupported(model: str, feature: str) -> Rejected:
    return Rejected(400, f'"{model}" does not support {feature}')


def _schema(format_: object) -> dict[str, Any] | None:
    if format_ is None or format_ == "":
        return None
    if format_ == "json":
        return {"type": "object"}
    if not isinstance(format_, dict):
        text = f'invalid format: {json.dumps(format_)}; expected "json" or a valid JSON Schema'
        raise Rejected(500, text)
    if len(json.dumps(format_)) > SCHEMA_BYTES:
        raise Rejected(400, f"the schema in format is larger than {SCHEMA_BYTES} bytes")
    return format_


def _top_logprobs(body: Body) -> int | None:
    top = _take(body, "top_logprobs", int, 0)
    if not 0 <= top <= 20:
        raise Rejected(400, "top_logprobs must be between 0 and 20")
    return top if _take(body, "logprobs", bool, False) else None


def parse_embed(body: Body) -> EmbeddingRequest:
    """Return the texts in a body of `/api/embed`; raise Rejected.

    A request without texts only loads the model, also one that does not embed.
    """
    model = _known_in_embed(body)
    value = body.get("input")
    texts = [value] if isinstance(value, str) and value else value or []
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise Rejected(400, "invalid input type")
    if texts:
        _require_embedder(model)
    truncate = _take(body, "truncate", bool, True)
    return EmbeddingRequest(model, [_clean(text) for text in texts], truncate, _dimensions(body))


def _dimensions(body: Body) -> int:
    # Ollama ignores values below one.
    return max(0, _take(body, "dimensions", int, 0))


def parse_embeddings(body: Body) -> EmbeddingRequest:
    """Return the one text in a body of the old `/api/embeddings`; raise Rejected."""
    if not body.get("model"):
        raise Rejected(400, "model is required")
    prompt = _take(body, "prompt", str, "")
    model = _known_in_embed(body)
    if prompt:
        _require_embedder(model)
    return EmbeddingRequest(model, [prompt] if prompt else [], True, 0)


def parse_name(body: Body) -> str:
    """Return the requested model, under its new or its old key."""
    return _take(body, "model", str, "") or _take(body, "name", str, "")


def known(name: str) -> str:
    """Return the model that has this name in some spelling; raise Rejected."""
    model = named(name)
    if model is None:
        raise Rejected(404, f"model '{name}' not found")
    return model


def _generating_model(body: Body, verb: str) -> str:
    name = _take(body, "model", str, "")
    if known(name) != NAME:
        raise _unsupported(name, verb)
    return name


def _known_in_embed(body: Body) -> str:
    name = _take(body, "model", str, "")
    if name and named(name) is None:
        raise Rejected(404, f'model "{name}" not found, try pulling it first')
    known(name)
    return name


def _require_embedder(name: str) -> None:
    if known(name) == NAME:
        raise Rejected(501, json.dumps({"error": NO_EMBEDDINGS}, separators=(",", ":")))


def _take(body: Body, key: str, kind: type[T], default: T) -> T:
    value = body.get(key)
    if value is None:
        return default
    if type(value) is not kind:
        raise Rejected(400, f"{key} must be {WORDS[kind]}")
    return _clean(value) if isinstance(value, str) else value  # type: ignore[return-value]


def _clean(text: str) -> str:
    """Replace lone surrogates as Go does: JSON can contain them, UTF-8 cannot."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
