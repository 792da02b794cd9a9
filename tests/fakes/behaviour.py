"""How a well-behaved Ollama answers: a request and its models in, a script out."""

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from tests.fakes.script import CREATED_AT, NDJSON, Line, Status, Step, reply, tokens

VERSION = "0.33.0"
WORDS = ("The", " sky", " is", " blue", " because", " of", " Rayleigh", " scattering", ".")
MODELS = ("llama3:latest", "mistral:latest", "nomic-embed-text:latest")
# What a pull finds in the registry besides the models that are there already.
REGISTRY = ("phi3:latest", "qwen2:latest")

Script = list[Step]
Body = dict[str, Any]


class Request(Protocol):
    """What an answer depends on."""

    method: str
    body: bytes

    @property
    def path(self) -> str: ...


def answer(request: Request, models: list[str], loaded: list[str] | None = None) -> Script:
    """The script for a request; pull and delete change the models.

    `loaded`: the models in memory, if not all.
    """
    methods = ROUTES.get(request.path)
    if methods is None:
        return reply("404 page not found", 404)
    handler = methods.get(request.method)
    if handler is None:
        return reply("405 method not allowed", 405)
    try:
        body = json.loads(request.body) if request.method in ("POST", "DELETE") else {}
    except ValueError:
        return _error(400, "invalid JSON" if request.body else "missing request body")
    if not isinstance(body, dict):
        return _error(400, "not an object")
    listed = models if loaded is None or request.path != "/api/ps" else loaded
    return handler(body, listed)


def full_name(name: str) -> str:
    """A model's name with its tag, as Ollama compares names."""
    name = name.lower()
    return name if ":" in name.rsplit("/", 1)[-1] else f"{name}:latest"


def _error(status: int, text: str) -> Script:
    return reply({"error": text}, status)


def _named(body: Body) -> str:
    return body.get("model") or body.get("name") or ""


def _knows(body: Body, models: list[str]) -> bool:
    return full_name(_named(body)) in map(full_name, models)


def _digest(name: str) -> str:
    return hashlib.sha256(full_name(name).encode()).hexdigest()


def _embeds(name: str) -> bool:
    return "embed" in name


# --- Generating -----------------------------------------------------------------------------


def _generate(body: Body, models: list[str]) -> Script:
    asked = f"{body.get('system') or ''} {body.get('prompt') or ''}"
    return _write("/api/generate", body, models, asked)


def _chat(body: Body, models: list[str]) -> Script:
    if not _named(body):
        return _error(400, "model is required")
    asked = " ".join(str(said.get("content") or "") for said in body.get("messages") or [])
    return _write("/api/chat", body, models, asked)


def _write(path: str, body: Body, models: list[str], asked: str) -> Script:
    name = _named(body)
    if not _knows(body, models):
        return _error(404, f"model '{name}' not found")
    if _embeds(name):
        return _error(400, f'"{name}" does not support {path.rsplit("/", 1)[-1]}')
    if not asked.strip():
        return _load(path, body)
    limit = (body.get("options") or {}).get("num_predict", -1)
    if not isinstance(limit, int):
        return _error(500, 'option "num_predict" must be of type integer')
    words = WORDS if limit < 0 else WORDS[:limit]
    facts: Body = {
        "path": path,
        "model": name,
        "prompt": len(asked.split()),
        "reason": "length" if len(words) < len(WORDS) else "stop",
    }
    if path == "/api/generate" and not body.get("raw"):
        facts["context"] = [1, 2, 3]
    if body.get("stream") is False:
        return _whole(path, words, facts)
    return tokens(words, **facts)


def _whole(path: str, words: tuple[str, ...], facts: Body) -> Script:
    """The same answer in one object."""
    last = tokens([], count=len(words), **facts)[-1]
    assert isinstance(last, Line) and isinstance(last.content, Mapping)
    text = "".join(words)
    if path == "/api/chat":
        return reply({**last.content, "message": {"role": "assistant", "content": text}})
    return reply({**last.content, "response": text})


def _load(path: str, body: Body) -> Script:
    """An empty prompt only loads the model, or unloads it: one object without any metric."""
    reason = "unload" if body.get("keep_alive") == 0 else "load"
    said: Body = {"response": ""}
    if path == "/api/chat":
        said = {"message": {"role": "assistant", "content": ""}}
    about = {"model": _named(body), "created_at": CREATED_AT}
    return reply({**about, **said, "done": True, "done_reason": reason})


# --- Embedding ------------------------------------------------------------------------------


def vector(text: str, size: int = 8) -> list[float]:
    """A small vector of length one that depends on the text alone."""
    numbers = [byte - 127.5 for byte in hashlib.sha256(text.encode()).digest()[:size]]
    length = math.sqrt(sum(number * number for number in numbers))
    return [round(number / length, 6) for number in numbers]


def _embed(body: Body, models: list[str]) -> Script:
    if not _knows(body, models):
        return _error(404, f'model "{_named(body)}" not found, try pulling it first')
    given = body.get("input") or []
    inputs = [given] if isinstance(given, str) else given
    count = sum(len(text.split()) for text in inputs)
    found: Body = {
        "model": _named(body),
        "embeddings": [vector(text) for text in inputs],
        "total_duration": 2_000_000,
        "load_duration": 1_000_000,
    }
    return reply(found | ({"prompt_eval_count": count} if count else {}))


def _embeddings(body: Body, models: list[str]) -> Script:
    """The legacy route: one vector and never a count."""
    if not _knows(body, models):
        return _error(404, f'model "{_named(body)}" not found, try pulling it first')
    return reply({"embedding": vector(body.get("prompt") or "")})


# --- Models ---------------------------------------------------------------------------------


def _details(name: str) -> Body:
    family = "nomic-bert" if _embeds(name) else "llama"
    return {
        "parent_model": "",
        "format": "gguf",
        "family": family,
        "families": [family],
        "parameter_size": "137M" if _embeds(name) else "8.0B",
        "quantization_level": "Q4_0",
    }


def _entry(name: str) -> Body:
    return {
        "name": full_name(name),
        "model": full_name(name),
        "size": 4_661_224_676,
        "digest": _digest(name),
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
        return _error(404, f"model '{name}' not found")
    shown = {
        "license": "A licence",
        "modelfile": f"FROM /srv/ollama/models/blobs/sha256-{_digest(name)}",
        "parameters": "num_ctx 4096",
        "template": "SECRET TEMPLATE {{ .Prompt }}",
        "system": "SECRET SYSTEM PROMPT",
        "messages": [{"role": "user", "content": "SECRET MESSAGE"}],
        "details": _details(name),
        "model_info": {"general.architecture": "llama", "llama.context_length": 8192},
        "capabilities": ["embedding"] if _embeds(name) else ["completion", "tools"],
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
    digest = _digest(name)
    layer = {"status": f"pulling {digest[:12]}", "digest": f"sha256:{digest}", "total": 1000}
    steps = [{"status": text} for text in ("verifying sha256 digest", "writing manifest")]
    counted = [layer, layer | {"completed": 400}, layer | {"completed": 1000}]
    return [*counted, *steps, {"status": "success"}]


def _delete(body: Body, models: list[str]) -> Script:
    if not _knows(body, models):
        return _error(404, f"model '{_named(body)}' not found")
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
    "/api/delete": {"DELETE": _delete},
}
