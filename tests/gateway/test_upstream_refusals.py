"""What the model server rejects, and short calls to it."""

from collections.abc import Iterator
from typing import Any

import pytest
import requests
import responses
from django.db import OperationalError

from billing.models import Hold
from gateway import errors
from gateway.errors import GatewayError
from gateway.http import error_handlers
from gateway.upstream.client import configured_client
from tests.fakes.ollama import FakeOllama
from tests.fakes.script import Line, reply, tokens
from tests.harness.callers import Caller
from tests.harness.errors import SECRET, is_clean

# --- What the model server refuses ----------------------------------------------------------------

LACKS_TOOLS = "registry.ollama.ai/library/llama3:latest does not support tools"
TOO_LONG = (
    '{"error":{"code":400,"message":"request (9 tokens) exceeds the available context length"}}'
)

REFUSALS = {
    "bad request": (400, SECRET, 400, "invalid_request"),
    "lacks tools": (400, LACKS_TOOLS, 400, "invalid_request"),
    "context length": (400, TOO_LONG, 400, "invalid_request"),
    "bad format": (500, "invalid format: " + SECRET, 400, "invalid_request"),
    "bad grammar": (500, "failed to load model vocabulary required for grammar", 400, None),
    "unauthorized": (401, SECRET, 502, "upstream_error"),
    "cloud disabled": (403, SECRET, 502, "upstream_error"),
    "host refused": (403, "", 502, "upstream_error"),
    "unknown model": (404, "model 'llama3:latest' not found", 404, "model_not_found"),
    "unknown address": (404, "404 page not found", 404, "model_not_found"),
    "wrong method": (405, "405 method not allowed", 502, "upstream_error"),
    "cancelled": (499, "request canceled", 502, "upstream_error"),
    "broken": (500, SECRET, 502, "upstream_error"),
    "bad option": (500, 'option "num_ctx" must be of type integer', 502, "upstream_error"),
    "bad gateway": (502, "<html>nginx</html>", 502, "upstream_error"),
    "busy": (503, "server busy, please try again.  maximum pending", 503, "upstream_busy"),
    "teapot": (418, SECRET, 502, "upstream_error"),
    "created": (201, "{}", 502, "upstream_error"),
    "no content": (204, "", 502, "upstream_error"),
    "unchanged": (304, "", 502, "upstream_error"),
}


@pytest.mark.usefixtures("priced")
@pytest.mark.parametrize("path", ["/generate", "/api/generate"])
@pytest.mark.parametrize(("status", "text", "ours", "code"), REFUSALS.values(), ids=REFUSALS)
def test_a_refusal_is_told_in_our_words_and_costs_nothing(
    alice: Caller,
    ollama: FakeOllama,
    path: str,
    status: int,
    text: str,
    ours: int,
    code: str | None,
) -> None:
    ollama.answer("/api/generate", reply({"error": text}, status))
    answer = alice.post(path, model="llama3", prompt="hi")

    assert is_clean(answer, ours) and code in (None, answer.json()["code"])
    assert SECRET not in answer.content.decode()
    assert Hold.objects.get().state == "released" and alice.wallet.spent == 0
    assert len(ollama.requests) == 1, "a refusal is not tried again"


@pytest.mark.usefixtures("priced")
def test_a_model_that_lacks_a_capability_is_named_as_the_client_knows_it(
    alice: Caller, ollama: FakeOllama
) -> None:
    ollama.answer("/api/chat", reply({"error": LACKS_TOOLS}, 400))
    answer = alice.post("/chat", model="llama3", messages=[{"role": "user", "content": "hi"}])

    assert answer.json()["error"] == "model 'llama3:latest' does not support tools"


@pytest.mark.usefixtures("priced")
@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_not_followed(alice: Caller, ollama: FakeOllama, status: int) -> None:
    with FakeOllama() as other:
        there = other.url + "/api/generate"
        ollama.answer("/api/generate", reply({}, status, Location=there))

        assert is_clean(alice.post("/generate", model="llama3", prompt="hi"), 502)
        assert other.requests == []


@pytest.mark.usefixtures("priced")
def test_no_header_of_the_model_server_reaches_the_client(
    alice: Caller, ollama: FakeOllama
) -> None:
    theirs: dict[str, Any] = {"Set_Cookie": "a=b", "Server": "x", "X_Own": "1"}
    theirs |= {"Access_Control_Allow_Origin": "*"}
    final = tokens([])[0]
    assert isinstance(final, Line)
    whole = reply(final.content, **theirs)
    ollama.answer("/api/generate", whole)
    answer = alice.post("/generate", model="llama3", prompt="hi")

    assert answer.status_code == 200
    assert not {"set-cookie", "server", "access-control-allow-origin", "x-own"} & {
        name.lower() for name in answer.headers
    }


# --- Short calls ----------------------------------------------------------------------------------

TAGS = "http://ollama.test/api/tags"


@pytest.fixture
def mocked(settings: Any) -> Iterator[responses.RequestsMock]:
    settings.OLLAMA_BASE = "http://ollama.test"
    with responses.RequestsMock() as mock:
        yield mock


def test_a_short_call_returns_its_object(mocked: responses.RequestsMock) -> None:
    mocked.get(TAGS, json={"models": []})

    assert configured_client().fetch("tags") == {"models": []}


def test_a_short_call_without_a_body_returns_nothing(mocked: responses.RequestsMock) -> None:
    mocked.get(TAGS, body=b"")

    assert configured_client().fetch("tags") == {}


@pytest.mark.parametrize("body", ["[]", "5", "null", "{", "<html>", "[" * 100_000], ids=repr)
def test_a_short_call_that_returns_no_object_is_broken(
    mocked: responses.RequestsMock, body: str
) -> None:
    mocked.get(TAGS, body=body)
    with pytest.raises(errors.UpstreamBroke):
        configured_client().fetch("tags")


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, errors.BadRequest),
        (401, errors.UpstreamError),
        (403, errors.UpstreamError),
        (404, errors.ModelNotFound),
        (500, errors.UpstreamError),
        (503, errors.UpstreamBusy),
    ],
)
def test_the_status_of_a_short_call_becomes_an_error(
    mocked: responses.RequestsMock, status: int, kind: type[GatewayError]
) -> None:
    mocked.get(TAGS, json={"error": SECRET}, status=status)
    with pytest.raises(kind) as raised:
        configured_client().fetch("tags")
    assert type(raised.value) is kind and SECRET not in raised.value.message


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        (requests.ConnectTimeout(), errors.UpstreamDown),
        (requests.ReadTimeout(), errors.UpstreamStalled),
        (requests.ConnectionError(), errors.UpstreamBroke),
        (requests.exceptions.InvalidURL(), errors.UpstreamBroke),
        (OSError(), errors.UpstreamBroke),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_fault_of_the_connection_becomes_an_error(
    mocked: responses.RequestsMock, fault: Exception, kind: type[GatewayError]
) -> None:
    mocked.get(TAGS, body=fault)
    with pytest.raises(kind):
        configured_client().fetch("tags")


def test_a_model_server_that_is_off_is_down() -> None:
    with pytest.raises(errors.UpstreamDown):
        configured_client().fetch("version")


def test_a_model_server_that_is_away_is_named_in_the_log(
    alice: Caller, priced: Any, settings: Any, caplog: pytest.LogCaptureFixture
) -> None:
    settings.OLLAMA_BASE = "http://127.0.0.1:9"

    answer = alice.post("/generate", model="llama3", prompt="Hi")

    assert answer.status_code == 503
    assert "The model server at http://127.0.0.1:9 cannot be reached." in caplog.text


def test_a_database_that_is_away_says_why_in_one_line(caplog: pytest.LogCaptureFixture) -> None:
    away = OperationalError("connection failed: no password supplied\nLINE 1: SELECT 'a prompt'")

    assert isinstance(error_handlers.as_gateway_error(away), errors.DatabaseDown)
    assert "no password supplied" in caplog.text and "a prompt" not in caplog.text
