"""What an error of the model server means: whose fault it is, and what the client is told. Pure.

One table for both ways an error arrives: as a status, and as a line of a stream that has begun.
- A client fault becomes a BadRequest, also where Ollama says it with status 500.
- A failure of the model server becomes an UpstreamError; in a stream it is UpstreamBroke.
- A line that fits neither is a client fault: otherwise a prompt that ends its own stream in a new
  way would be free.

Ollama's text is never repeated: it may hold paths, internal names and other customers' requests.
What a log may say of it are the words of this table, as the error's `cause`.
"""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from gateway.errors import (
    BadRequest,
    GatewayError,
    ModelNotFound,
    RegistryUnreachable,
    UpstreamBroke,
    UpstreamBusy,
    UpstreamError,
)

# An error of llama-server stands as JSON inside Ollama's; one more level costs nothing.
MAX_NESTING = 4
# How many characters of a pull's error a log gets.
MAX_CAUSE = 500


@dataclass(frozen=True, slots=True)
class Complaint:
    """An error of the model server, unwrapped: `code`, `kind` and the counts are llama-server's."""

    text: str
    model: str = ""
    code: int = 0
    kind: str = ""
    prompt_tokens: int = 0
    context: int = 0

    @property
    def names_the_request(self) -> bool:
        """Tell whether llama-server itself says that the request is at fault."""
        return 400 <= self.code < 500


# --- The table ------------------------------------------------------------------------------------

# Failures of the model server. Embedding says some of them with status 400.
FAILURES = (
    "an error was encountered while running the model",
    "model runner has unexpectedly stopped",
    "llama-server process",
    "llama runner process",
    "llama-server startup failed",
    "llama-server binary not found",
    "error starting llama-server",
    "timed out waiting for",
    "unexpected server status",
    "no slots available",
    "reading llama-server",
    "closing llama-server",
    "unmarshalling llama-server",
    "stream event exceeded",
    "do embedding request",
    "embed response",
    "embedding response",
    "embedding values",
    "embedding contains nan",
    "unexpected eof",
    "forcibly closed",
    "connection reset",
    "connection refused",
    "broken pipe",
    "out of memory",
    "out-of-memory",
    "cuda error",
    "ggml_assert",
)

_LACKS = re.compile(
    r"does not support (chat|completion|embeddings?|generate|insert|thinking|tools|audio)\b"
)


def _too_long(complaint: Complaint) -> GatewayError:
    if complaint.prompt_tokens and complaint.context:
        return BadRequest(
            f"The prompt has {complaint.prompt_tokens:,} tokens, "
            f"the context of this model is {complaint.context:,}."
        )
    return BadRequest("The prompt is longer than the model's context.")


def _lacks(complaint: Complaint) -> GatewayError:
    found = _LACKS.search(complaint.text)
    return BadRequest(f"{_named(complaint)} does not support {found[1] if found else 'this'}")


def _no_images(complaint: Complaint) -> GatewayError:
    return BadRequest(f"{_named(complaint)} does not take images")


def _named(complaint: Complaint) -> str:
    return f"model '{complaint.model}'" if complaint.model else "the model"


def _says(message: str) -> Callable[[Complaint], GatewayError]:
    return lambda _complaint: BadRequest(message)


# Faults of the request: words of the error in lower case, and what the client is told. The first
# row that fits decides.
CLIENT_FAULTS: tuple[tuple[tuple[str, ...], Callable[[Complaint], GatewayError]], ...] = (
    (
        # Ollama says so of a text that has no tokens at all for a model without a BOS token.
        ("cannot be truncated further", "input after truncation exceeds"),
        _says("A text of the input is empty, or cannot be cut to the model's context."),
    ),
    (
        ("context size has been exceeded",),
        _says("The prompt and the response together fill the model's context."),
    ),
    (("exceed_context_size_error", "context length", "context size"), _too_long),
    (
        ("image input is not supported", "multimodal", "does not support vision"),
        _no_images,
    ),
    (
        ("json schema", "generate parser", "grammar", "invalid format:"),
        _says("The model server cannot use the JSON schema of this request."),
    ),
    (("does not support ",), _lacks),
    (
        # The parsers of Ollama for each model's way of writing a call, and llama-server's.
        (
            *("tool call", "tool '", 'tool "', "is not declared", "undeclared", "function call"),
            *("function name", "function_calls", "atem ", "arg_key", "argument name"),
            *("required argument", "failed to parse json", "failed to parse xml"),
            *("failed to parse arguments", "invalid format"),
        ),
        _says("The model wrote a tool call that cannot be read. Ask again, or offer other tools."),
    ),
)
# A model that is not there, where Ollama says it with status 500.
MISSING = ("file does not exist", "not found")
# How a pull says that the registry has no such model. Whatever else fails begins with the same
# three words.
NOT_IN_REGISTRY = "pull model manifest: file does not exist"


# --- The two ways an error arrives ----------------------------------------------------------------


def from_status(status: int, body: str, model: str = "") -> GatewayError:
    """Return what a response with an error's status means."""
    complaint = _unwrapped(body, model)
    if status == 404:
        return ModelNotFound(model)
    if found := _client_fault(complaint) or _failure(complaint, UpstreamError):
        return found
    if status >= 500 and any(words in complaint.text for words in MISSING):
        return ModelNotFound(model)
    if status == 503:
        return UpstreamBusy()
    if status == 400 or complaint.names_the_request:
        return BadRequest("The model server refused this request as invalid.")
    return UpstreamError()


def from_line(error: Any, model: str = "") -> GatewayError:
    """Return what the `error` of a line means that came in place of a chunk."""
    complaint = _unwrapped(error if isinstance(error, str) else json.dumps(error), model)
    found = _client_fault(complaint) or _failure(complaint, UpstreamBroke)
    return found or BadRequest("The model server could not finish this request.")


def from_pull(error: Any, model: str) -> GatewayError:
    """Return what the `error` of a pull's line means. Its text is the operator's own registry's and
    network's, so it is the cause that a log may name."""
    text = error if isinstance(error, str) else json.dumps(error)
    if text.startswith(NOT_IN_REGISTRY):
        return ModelNotFound(model)
    failed = RegistryUnreachable()
    failed.cause = repr(text[:MAX_CAUSE])
    return failed


def _client_fault(complaint: Complaint) -> GatewayError | None:
    """Return what the table says, unless the words of a failure stand there too: the text of a
    crash holds the log of other requests."""
    if not complaint.names_the_request and _failure_words(complaint):
        return None
    found = complaint.kind + " " + complaint.text.lower()
    for words, told in CLIENT_FAULTS:
        if any(word in found for word in words):
            return told(complaint)
    return None


def _failure(complaint: Complaint, kind: type[UpstreamError]) -> GatewayError | None:
    words = None if complaint.names_the_request else _failure_words(complaint)
    if words is None:
        return None
    error = kind()
    error.cause = words
    return error


def _failure_words(complaint: Complaint) -> str | None:
    text = complaint.text.lower()
    return next((words for words in FAILURES if words in text), None)


# --- Nested JSON ----------------------------------------------------------------------------------


def _unwrapped(text: str, model: str) -> Complaint:
    """Read an error out of the JSON around it: Ollama's `{"error": "…"}`, in which llama-server's
    `{"error": {"code": …, "message": …}}` may stand as a text."""
    found = Complaint(text, model)
    for _ in range(MAX_NESTING):
        value = _object(found.text)
        inner = value.get("error", value.get("message")) if value else None
        if isinstance(inner, dict):
            return _of_llama_server(inner, model)
        if not isinstance(inner, str):
            break
        found = Complaint(inner, model)
    return found


def _of_llama_server(error: dict[str, Any], model: str) -> Complaint:
    return Complaint(
        text=str(error.get("message", "")),
        model=model,
        code=_count(error.get("code")),
        kind=str(error.get("type", "")),
        prompt_tokens=_count(error.get("n_prompt_tokens")),
        context=_count(error.get("n_ctx")),
    )


def _object(text: str) -> dict[str, Any] | None:
    """Return the JSON object a text begins with; a line of a log may follow it."""
    if not text.startswith("{"):
        return None
    try:
        value, _end = json.JSONDecoder().raw_decode(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _count(value: Any) -> int:
    """Return a whole number that can be believed, else 0."""
    return value if type(value) is int and 0 <= value < 10**9 else 0
