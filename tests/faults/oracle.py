"""What must be true of every response, and of every request to the model server."""

import json
import re
from collections import Counter
from dataclasses import dataclass
from typing import Any

from django.conf import settings

from gateway.names import canonical
from tests.fakes import behaviour
from tests.fakes.ollama import FakeOllama, Received

# --- Answers ----------------------------------------------------------------------------------

# Internals that no response may reveal.
INTERNALS = re.compile(
    rb'Traceback|File "|site-packages|\b[A-Z]\w+(?:Error|Exception)\b|django|psycopg|sqlite|urllib3'
    rb"|127\.0\.0\.1|OLLAMA_BASE|DATABASE_URL|" + re.escape(str(settings.BASE_DIR).encode())
)
PAGES = ("/admin/", "/static/")
REDIRECTS = ("/admin",)


@dataclass(frozen=True)
class Answer:
    """A response; `whole` unless the client disconnected in the middle of it."""

    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes
    whole: bool = True

    def header(self, name: str) -> str:
        return next((value for named, value in self.headers if named.lower() == name), "")


def complaint(method: str, path: str, answer: Answer) -> str:
    """Return what is wrong with a response, or an empty text; `path` is decoded."""
    if answer.status >= 500:
        return f"answered {answer.status}"
    if any(set(value) & {"\r", "\n", "\0"} for _, value in answer.headers):
        return "a header that breaks the protocol"
    if not answer.header("x-request-id"):
        return "no request id"
    if path.startswith(PAGES) or path in REDIRECTS:
        return ""
    if found := INTERNALS.search(answer.body) or secret_in(answer.body):
        return f"tells of the inside: {found[0]!r}"
    return "" if method == "HEAD" else wrong_body(path, answer)


def secret_in(body: bytes) -> re.Match[bytes] | None:
    return re.search(re.escape(settings.SECRET_KEY.encode()), body)


def wrong_body(path: str, answer: Answer) -> str:
    """Return what is wrong with the JSON of a response. All but the root answer in JSON."""
    kind = answer.header("content-type")
    try:
        if answer.status >= 400:
            return wrong_error(strict(answer.body), kind)
        if kind == "text/event-stream":
            wrong_events(answer.body)
        elif kind.startswith("application/") and answer.whole:
            [strict(line) for line in answer.body.splitlines()]
        elif answer.whole and answer.body and path != "/":
            return f"an answer of type {kind}"
    except ValueError as error:
        return f"not JSON: {error}"
    return ""


def wrong_error(body: Any, kind: str) -> str:
    shown = isinstance(body, dict) and body.get("error") and kind == "application/json"
    return "" if shown else "an error in no family's shape"


def wrong_events(body: bytes) -> None:
    for line in body.splitlines():
        if line.startswith(b"data: ") and line != b"data: [DONE]":
            strict(line.removeprefix(b"data: "))


def strict(text: bytes) -> Any:
    """Read JSON as strict parsers do; raise ValueError for anything else."""
    return json.loads(text.decode("utf-8"), parse_constant=no_constant, object_pairs_hook=unique)


def no_constant(name: str) -> None:
    raise ValueError(f"{name} is no number")


def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key stands twice")
    return found


# --- Requests to the model server -------------------------------------------------------------

OFFERED = ("llama3:latest", "mistral:latest", "nomic-embed-text:latest")
SHAPE = {"model", "stream", "format", "think", "truncate", "logprobs", "top_logprobs", "options"}
# Every field that may be forwarded. Repeated here, since the gateway's table may be wrong.
MAY_ASK: dict[tuple[str, str], set[str]] = {
    ("POST", "/api/generate"): SHAPE | {"prompt", "suffix", "system", "images"},
    ("POST", "/api/chat"): SHAPE | {"messages", "tools"},
    ("POST", "/api/embed"): {"model", "input", "truncate", "dimensions", "options"},
    ("POST", "/api/show"): {"model"},
    ("POST", "/api/pull"): {"model", "stream"},
    ("DELETE", "/api/delete"): {"model"},
    ("GET", "/api/tags"): set(),
    ("GET", "/api/ps"): set(),
    ("GET", "/api/version"): set(),
}
OPTIONS = """num_predict temperature top_k top_p min_p typical_p repeat_last_n repeat_penalty
    presence_penalty frequency_penalty seed stop""".split()  # noqa: SIM905
MESSAGE = "role content thinking images tool_calls tool_name tool_call_id".split()  # noqa: SIM905
HEADERS = {
    *("host", "accept", "accept-encoding", "connection", "user-agent"),
    *("content-type", "content-length"),
}
# What a key that may manage models may ask of models that have no price.
OPERATORS = ("/api/show", "/api/pull", "/api/delete")
# What no other key may ask at all.
MANAGEMENT = ("/api/pull", "/api/delete")


class Witness:
    """Checks every request to a fake model server, and lets it answer as a real one would.

    `may_manage`: whether the key of the current request may manage models.
    """

    def __init__(self, ollama: FakeOllama, *, may_manage: bool = True) -> None:
        self.complaints: list[str] = []
        self.asked: Counter[str] = Counter()
        self.may_manage = may_manage
        for path in behaviour.ROUTES:
            ollama.answer(path, self.answer)

    def answer(self, received: Received) -> behaviour.Script:
        self.asked[received.path] += 1
        if found := unexpected(received, may_manage=self.may_manage):
            self.complaints.append(
                f"{found}: {received.method} {received.target}: {received.body!r}"
            )
        # A copy of the models, so that a deleted one is there for later requests.
        return behaviour.answer(as_go_reads(received), list(behaviour.MODELS))


def as_go_reads(received: Received) -> Received:
    """Return a request without half surrogate pairs, which Go's parser replaces."""
    if rb"\ud" in received.body:
        text = json.dumps(json.loads(received.body), ensure_ascii=False)
        received.body = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace").encode()
    return received


def unexpected(received: Received, *, may_manage: bool) -> str:
    """Return what is wrong with a request to the model server, or an empty text."""
    fields = MAY_ASK.get((received.method, received.target))
    if fields is None:
        return "an address that is not on the list"
    if extra := {name.lower() for name in received.headers} - HEADERS:
        return f"headers {extra}"
    try:
        body = strict(received.body) if fields else {}
    except ValueError as error:
        return str(error)
    if is_load_or_unload(received.path, body):
        known = body["model"] in OFFERED if received.path == "/api/embed" else False
        return (
            "" if known or (may_manage and is_canonical(body["model"])) else "a load or an unload"
        )
    if received.path in MANAGEMENT and not may_manage:
        return "management by a customer"
    return (
        wrong_fields(body, fields) or (fields and wrong_model(received.path, body["model"])) or ""
    )


def is_load_or_unload(path: str, body: dict[str, Any]) -> bool:
    """Tell whether this is how the gateway loads a model, before its first request or for an
    operator, or how it unloads one for an operator."""
    load = path == "/api/embed" and body == {"model": body.get("model"), "input": []}
    unload = path == "/api/generate" and body == {"model": body.get("model"), "keep_alive": 0}
    return load or unload


def is_canonical(model: str) -> bool:
    return canonical(model) == model


def wrong_fields(body: dict[str, Any], fields: set[str]) -> str:
    messages: list[dict[str, Any]] = body.get("messages", [])
    told = {name for message in messages for name in message}
    extra = [set(body) - fields, set(body.get("options", {})) - {*OPTIONS}, told - {*MESSAGE}]
    return f"fields {extra}" if any(extra) else ""


def wrong_model(path: str, model: str) -> str:
    known = is_canonical(model) if path in OPERATORS else model in OFFERED
    return "" if known else f"the model {model!r}"
