"""An error of the model server means one thing, as a status and as a line, and is never repeated.

The texts are Ollama's own, as commit fb30760 sends them.
"""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from gateway.errors import (
    BadRequest,
    GatewayError,
    ModelNotFound,
    UpstreamBroke,
    UpstreamBusy,
    UpstreamError,
)
from gateway.upstream.error_mapping import FAILURES, from_line, from_status


def nested(code: int, message: str, kind: str = "server_error", **more: Any) -> str:
    """Return an error of llama-server, which Ollama's own holds as a text."""
    return json.dumps({"error": {"code": code, "message": message, "type": kind, **more}})


TOO_LONG = nested(
    400,
    "request (5010 tokens) exceeds the available context size (4096 tokens), try increasing it",
    "exceed_context_size_error",
    n_prompt_tokens=5010,
    n_ctx=4096,
)
NO_EMBEDDINGS = nested(
    501,
    "This server does not support embeddings. Start it with `--embeddings`",
    "not_supported_error",
)
NO_IMAGES = nested(
    500, "image input is not supported - hint: if this is unexpected, provide the mmproj"
)
SCHEMA = "The model server cannot use the JSON schema of this request."
CALL = "The model wrote a tool call that cannot be read. Ask again, or offer other tools."
EMPTY_TEXT = "A text of the input is empty, or cannot be cut to the model's context."

# Status, text, what the client is told.
CLIENT_FAULTS = {
    "too long": (400, TOO_LONG, "The prompt has 5,010 tokens, the context of this model is 4,096."),
    "too long, and a log": (400, TOO_LONG + "\nout of memory", "The prompt has 5,010 tokens"),
    "too long to embed": (
        400,
        "the input length exceeds the context length",
        "The prompt is longer than the model's context.",
    ),
    "context full": (
        500,
        nested(500, "Context size has been exceeded."),
        "The prompt and the response together fill the model's context.",
    ),
    "an empty text": (
        400,
        "input exceeds maximum context length and cannot be truncated further",
        EMPTY_TEXT,
    ),
    "a schema": (400, nested(400, "JSON schema conversion failed:\nUnknown type: nonsuch"), SCHEMA),
    "a schema, natively": (
        400,
        nested(400, "Unable to generate parser for this template. Automatic parser gen…"),
        SCHEMA,
    ),
    "a grammar": (400, nested(400, "Failed to parse grammar", "invalid_request_error"), SCHEMA),
    "a format": (500, 'invalid format: "x"; expected "json" or a valid JSON Schema object', SCHEMA),
    "images": (
        400,
        nested(400, "Multimodal data provided, but model does not support multimodal requests."),
        "model 'm' does not take images",
    ),
    "images, natively": (500, NO_IMAGES, "model 'm' does not take images"),
    "embedding a text model": (501, NO_EMBEDDINGS, "model 'm' does not support embeddings"),
    "chat with an embedding model": (
        400,
        '"m" does not support chat',
        "model 'm' does not support chat",
    ),
    "tools": (
        400,
        "registry.ollama.ai/library/m:latest does not support tools",
        "model 'm' does not support tools",
    ),
    "an undeclared tool": (500, 'tool "nonsuch" is not declared', CALL),
    "a tool that is not found": (500, "tool 'nonsuch' not found", CALL),
    "a broken call": (500, "error parsing tool call: raw='{', err=unexpected end", CALL),
    "a call without a name": (500, "empty function name", CALL),
    "an option": (
        400,
        nested(400, "penalty_repeat must be finite and greater than 0"),
        "The model server refused this request as invalid.",
    ),
}


@pytest.mark.parametrize(
    ("status", "text", "said"), CLIENT_FAULTS.values(), ids=CLIENT_FAULTS.keys()
)
def test_a_client_fault_is_a_400_with_a_sentence(status: int, text: str, said: str) -> None:
    as_status = from_status(status, json.dumps({"error": text}), "m")

    assert type(as_status) is BadRequest and as_status.message.startswith(said)


@pytest.mark.parametrize(
    ("status", "text", "said"), CLIENT_FAULTS.values(), ids=CLIENT_FAULTS.keys()
)
def test_a_client_fault_in_a_stream_is_told_alike(status: int, text: str, said: str) -> None:
    as_line = from_line(text, "m")

    assert type(as_line) is BadRequest
    if "refused" not in said:
        assert as_line.message == from_status(status, text, "m").message


CRASHES = [
    "an error was encountered while running the model: unexpected EOF",
    (
        "an error was encountered while running the model: slot 1 task id = 395, request "
        "(5031 tokens) exceeds the available context size (4096 tokens)"
    ),
    "model runner has unexpectedly stopped, check the logs: grammar of another request",
    "llama-server process has terminated: signal: killed",
    "llama-server process no longer running: 139 segmentation fault",
    "llama runner process has terminated: exit status 2",
    "error reading llama-server response: read tcp 127.0.0.1:1->127.0.0.1:2: connection reset",
    "CUDA error: out of memory at /srv/ollama",
    nested(500, "compute error: out of memory"),
]


@pytest.mark.parametrize("text", CRASHES, ids=lambda text: text[:40])
def test_a_failure_of_the_model_server_is_its_own(text: str) -> None:
    assert type(from_line(text)) is UpstreamBroke
    assert type(from_status(500, json.dumps({"error": text}))) is UpstreamError


def test_a_crash_while_embedding_is_no_client_fault_though_its_status_is_400() -> None:
    crash = 'do embedding request: Post "http://127.0.0.1:35001/embedding": EOF'

    assert type(from_status(400, json.dumps({"error": crash}))) is UpstreamError


def test_a_log_is_told_which_failure_it_was_and_none_of_the_text() -> None:
    assert from_line("llama-server process has terminated: SECRET").cause == "llama-server process"


def test_a_line_that_fits_nothing_is_a_client_fault() -> None:
    """Otherwise a prompt that ends its stream in a way we do not know yet would be free."""
    for error in ("something new", {"a": 1}, 5, nested(500, "something new")):
        assert type(from_line(error)) is BadRequest


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, BadRequest),
        (404, ModelNotFound),
        (499, UpstreamError),
        (500, UpstreamError),
        (502, UpstreamError),
        (503, UpstreamBusy),
    ],
)
def test_a_status_with_a_text_that_fits_nothing_speaks_for_itself(
    status: int, kind: type[GatewayError]
) -> None:
    for body in ("", "<html>", '{"error": "something new"}', "{" * 9000):
        assert type(from_status(status, body)) is kind


ODD = ["5010", -1, None, True, 10**12, 1.5, [1]]


@pytest.mark.parametrize("odd", ODD, ids=repr)
def test_counts_that_are_none_are_not_told(odd: Any) -> None:
    text = nested(400, "exceeds", "exceed_context_size_error", n_prompt_tokens=odd, n_ctx=odd)

    assert from_line(text).message == "The prompt is longer than the model's context."


TEXTS = st.text(max_size=80) | st.sampled_from([*FAILURES, "grammar", "tool call", '{"error":"'])


@examples(deadline=None)
@given(st.integers(400, 599), st.lists(TEXTS, max_size=3).map(" ".join))
def test_the_model_servers_text_is_never_repeated(status: int, text: str) -> None:
    canary = f"/srv/secret {text}"

    for found in (from_status(status, canary, "m"), from_line(canary, "m")):
        assert "/srv/secret" not in found.message
    wrapped = json.dumps({"error": nested(status, canary)})
    assert "/srv/secret" not in from_status(status, wrapped, "m").message
