"""How a healthy Ollama responds: from a request and the installed models to a script."""

import hashlib
import json
import math
from collections.abc import Callable
from typing import Any, Protocol

from tests.fakes import refusals
from tests.fakes.kinds import CONTEXT, Kind, digest, full_name
from tests.fakes.script import NDJSON, Line, Status, Step, reply
from tests.fakes.writing import WORDS, write

__all__ = ["MODELS", "ROUTES", "VERSION", "WORDS", "answer", "full_name", "vector"]

VERSION = "0.33.0"
MODELS = ("llama3:latest", "mistral:latest", "nomic-embed-text:latest")
# Models in the registry that are not installed.
REGISTRY = ("phi3:latest", "qwen2:latest")

Script = list[Step]
Body = dict[str, Any]


class Request(Protocol):
    """The request and the state that a response depends on."""

    method: str
    body: bytes

    @property
    def path(self) -> str: ...


def answer(
    request: Request,
    models: list[str],
    loaded: list[str] | None = None,
    cached: set[str] | None = None,
) -> Script:
    """Return the script for a request. Pull, copy and delete change the models.

    `loaded`: the models in memory, if not all. `cached`: the prompts that were read before.
    """
    methods = ROUTES.get(request.path)
    if methods is None:
        return _redirect(request)
    handler = methods.get(request.method)
    if handler is None:
        return reply("405 method not allowed", 405)
    try:
        body = read(request.body) if request.method in ("POST", "DELETE") else {}
    except ValueError:
        return _error(400, "invalid JSON" if request.body else "missing request body")
    if not isinstance(body, dict):
        return _error(400, "not an object")
    if request.path == "/api/ps" and loaded is not None:
        return handler(body, loaded)
    return handler(body | {CACHED: set() if cached is None else cached}, models)


# The key of the prompts that were processed before.
CACHED = "_cached"


def _redirect(request: Request) -> Script:
    """A trailing slash is redirected if the method exists. Any other route is 404."""
    path = request.path.rstrip("/")
    if path in ROUTES and request.method in ROUTES[path] and path != request.path:
        status = 301 if request.method == "GET" else 307
        return [Status(status, {"Location": path, "Content-Length": "0", "Content-Type": None})]
    return reply("404 page not found", 404)


def read(body: bytes) -> Any:
    """Parse a body as Go does: case-insensitive names, and only the first JSON value."""
    value, _end = json.JSONDecoder().raw_decode(body.decode().lstrip())
    if not isinstance(value, dict):
        return value
    return {name.casefold(): field for name, field in value.items()}


def _error(status: int, text: str) -> Script:
    return reply({"error": text}, status)


def _named(body: Body) -> str:
    return body.get("model") or body.get("name") or ""


def _knows(body: Body, models: list[str]) -> bool:
    return full_name(_named(body)) in map(full_name, models)


# --- Generating -----------------------------------------------------------------------------


def _generate(body: Body, models: list[str]) -> Script:
    asked = f"{body.get('system') or ''} {body.get('prompt') or ''}"
    return _write("/api/generate", body, models, asked)


def _chat(body: Body, models: list[str]) -> Script:
    if not _named(body):
        return _error(400, "model is required")
    asked = " ".join(_texts(body.get("messages") or []))
    return _write("/api/chat", body, models, asked)


def _texts(messages: list[Any]) -> list[str]:
    return [str(said.get("content") or "") for said in messages]


def _write(path: str, body: Body, models: list[str], asked: str) -> Script:
    if not _knows(body, models):
        return refusals.missing(_named(body))
    cached: set[str] = body[CACHED]
    key = f"{full_name(_named(body))} {asked}"
    script = write(path, body, _named(body), asked, is_cached=key in cached)
    cached.add(key)
    return script


# --- Embedding ------------------------------------------------------------------------------


def vector(text: str, size: int = 8) -> list[float]:
    """Return a small normalised vector that depends only on the text."""
    numbers = [byte - 127.5 for byte in hashlib.sha256(text.encode()).digest()[:size]]
    return _of_length_one(numbers)


def _of_length_one(numbers: list[float]) -> list[float]:
    length = math.sqrt(sum(number * number for number in numbers))
    return [round(number / length, 6) for number in numbers]


def _embed(body: Body, models: list[str]) -> Script:
    name = _named(body)
    if not name:
        return refusals.missing("")
    if not _knows(body, models):
        return refusals.missing_to_embed(name)
    given = body.get("input") or []
    inputs = [given] if isinstance(given, str) else given
    if not isinstance(inputs, list) or not all(isinstance(text, str) for text in inputs):
        return _error(400, "invalid input type")
    if inputs and not Kind(full_name(name)).embeds:
        return refusals.nested(501, refusals.NO_EMBEDDINGS, "not_supported_error")
    if "" in inputs:
        # The model has no token that begins a text, so an empty one has no token at all.
        return _error(400, refusals.NOT_TRUNCATED)
    return _vectors(name, body, inputs)


def _vectors(name: str, body: Body, inputs: list[str]) -> Script:
    context = (body.get("options") or {}).get("num_ctx") or CONTEXT
    counts = [len(text.split()) for text in inputs]
    if body.get("truncate") is False and max(counts, default=0) > context:
        return _error(400, refusals.TOO_LONG_TO_EMBED)
    count = sum(min(one, context) for one in counts)
    size = body.get("dimensions") or 0
    found: Body = {
        "model": name,
        "embeddings": [_cut(vector(text), size) for text in inputs],
        "total_duration": 2_000_000,
        "load_duration": 1_000_000,
    }
    return reply(found | ({"prompt_eval_count": count} if count else {}))


def _cut(whole: list[float], size: int) -> list[float]:
    return _of_length_one(whole[:size]) if 0 < size < len(whole) else whole


def _embeddings(body: Body, models: list[str]) -> Script:
    """The legacy route: one vector, no count, case-sensitive names."""
    name = _named(body)
    if not name:
        return _error(400, "model is required")
    if name not in models and f"{name}:latest" not in models:
        return refusals.missing_to_embed(name)
    if body.get("prompt") and not Kind(full_name(name)).embeds:
        return refusals.nested(501, refusals.NO_EMBEDDINGS, "not_supported_error")
    return reply({"embedding": vector(body["prompt"]) if body.get("prompt") else []})


# --- Models ---------------------------------------------------------------------------------


def _details(name: str) -> Body:
    family = "nomic-bert" if Kind(name).embeds else "llama"
    return {
        "parent_model": "",
        "format": "gguf",
        "family": family,
        "families": [family],
        "parameter_size": "137M" if Kind(name).embeds else "8.0B",
        "quantization_level": "Q4_0",
    }


def _entry(name: str) -> Body:
    return {
        "name": full_name(name),
        "model": full_name(name),
        "size": 4_661_224_676,
        "digest": digest(name),
        "details": _details(name),
    }


def _tags(body: Body, models: list[str]) -> Script:
    modified = {"modified_at": "2026-01-01T02:00:00.123456789+02:00"}
    return reply({"models": [_entry(name) | modified for name in models]})


def _ps(body: Body, models: list[str]) -> Script:
    loaded = {
        "expires_at": "2318-01-01T00:00:00Z",
        "size_vram": 4_661_224_676,
        "context_length": 4096,
    }
    return reply({"models": [_entry(name) | loaded for name in models]})


def _show(body: Body, models: list[str]) -> Script:
    name = _named(body)
    if not _knows(body, models):
        return refusals.missing(name)
    shown = {
        "license": "A licence",
        "modelfile": f"FROM /srv/ollama/models/blobs/sha256-{digest(name)}",
        "parameters": "num_ctx 4096",
        "template": "SECRET TEMPLATE {{ .Prompt }}",
        "system": "SECRET SYSTEM PROMPT",
        "messages": [{"role": "user", "content": "SECRET MESSAGE"}],
        "details": _details(name),
        "model_info": {"general.architecture": "llama", "llama.context_length": 8192},
        "capabilities": Kind(full_name(name)).capabilities,
        "modified_at": "2026-01-01T02:00:00.123456789+02:00",
    }
    return reply(shown)


def _pull(body: Body, models: list[str]) -> Script:
    name = full_name(_named(body))
    known = name in {*map(full_name, [*models, *REGISTRY])}
    lines: list[Body] = [{"status": "pulling manifest"}]
    lines += _progress(name) if known else [{"error": "pull model manifest: file does not exist"}]
    if known and not _knows(body, models):
        models.append(name)
    if body.get("stream") is False:
        return reply(lines[-1], 200 if known else 500)
    return [Status(200, {"Content-Type": NDJSON}), *map(Line, lines)]


def _progress(name: str) -> list[Body]:
    hashed = digest(name)
    layer = {"status": f"pulling {hashed[:12]}", "digest": f"sha256:{hashed}", "total": 1000}
    steps = [{"status": text} for text in ("verifying sha256 digest", "writing manifest")]
    counted = [layer, layer | {"completed": 400}, layer | {"completed": 1000}]
    return [*counted, *steps, {"status": "success"}]


def _copy(body: Body, models: list[str]) -> Script:
    source, destination = body.get("source", ""), body.get("destination", "")
    if full_name(source) not in map(full_name, models):
        return _error(404, f'model "{source}" not found')
    models.append(full_name(destination))
    return [Status(200, {"Content-Type": None, "Content-Length": "0"})]


def _delete(body: Body, models: list[str]) -> Script:
    if not _knows(body, models):
        return refusals.missing(_named(body))
    models[:] = [name for name in models if full_name(name) != full_name(_named(body))]
    return [Status(200, {"Content-Type": None, "Content-Length": "0"})]


def _version(body: Body, models: list[str]) -> Script:
    return reply({"version": VERSION})


def _greet(body: Body, models: list[str]) -> Script:
    return reply("Ollama is running")


def _readable(handler: Callable[[Body, list[str]], Script]) -> dict[str, Any]:
    return {"GET": handler, "HEAD": handler}


ROUTES: dict[str, dict[str, Callable[[Body, list[str]], Script]]] = {
    "/": _readable(_greet),
    "/api/version": _readable(_version),
    "/api/tags": _readable(_tags),
    "/api/ps": {"GET": _ps},
    "/api/show": {"POST": _show},
    "/api/generate": {"POST": _generate},
    "/api/chat": {"POST": _chat},
    "/api/embed": {"POST": _embed},
    "/api/embeddings": {"POST": _embeddings},
    "/api/pull": {"POST": _pull},
    "/api/copy": {"POST": _copy},
    "/api/delete": {"DELETE": _delete},
}
