"""Every error is JSON in one shape, with its status, and tells nothing of the inside."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
import requests
import responses
from django.core.exceptions import SuspiciousOperation
from django.db import InterfaceError, OperationalError
from django.http import Http404
from django.test import Client, RequestFactory
from rest_framework import exceptions as drf

from billing.models import Hold, TokenUsage
from gateway import errors, metering
from gateway.dialects import ollama as native
from gateway.errors import GatewayError
from gateway.http import context, error_handlers
from gateway.metering import Refused
from gateway.relay.metered_chunks import MeteredChunks
from gateway.relay.token_counter import TokenCounter
from gateway.upstream import protocol
from gateway.upstream.client import OllamaClient, configured_client
from gateway.validation import policy
from tests.fakes.ollama import FakeOllama
from tests.fakes.script import Line, reply, tokens
from tests.harness.callers import Caller

SECRET = "/srv/models/blobs/sha256-0123 at 10.0.0.5"


def every_kind(kind: type[GatewayError] = GatewayError) -> Iterator[type[GatewayError]]:
    yield kind
    for narrower in kind.__subclasses__():
        yield from every_kind(narrower)


KINDS = sorted(set(every_kind()), key=lambda kind: kind.__name__)


def is_clean(answer: Any, status: int) -> bool:
    """Tell whether an answer is an error as every client of ours reads it."""
    body = json.loads(answer.content)
    return (
        answer.status_code == status
        and answer["Content-Type"] == "application/json"
        and set(body) == {"error", "code", "request_id"}
        and all(isinstance(value, str) and value for value in body.values())
        and answer["x-request-id"] == body["request_id"]
    )


# --- Rendering ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("path", ["/generate", "/api/generate", "/nowhere"])
def test_every_error_has_a_status_a_code_and_one_shape(kind: type[GatewayError], path: str) -> None:
    error = kind("A sentence.")
    request = RequestFactory().post(path)
    context.attach(request)
    answer = error_handlers.render(error, request)
    body = json.loads(answer.content)

    assert answer.status_code == kind.status and 400 <= kind.status < 600
    assert body["code"] == kind.code and isinstance(body["error"], str)
    assert answer.get("Retry-After") == (str(kind.retry_after) if kind.retry_after else None)


def test_no_two_errors_share_a_code_with_another_status() -> None:
    own = {kind for kind in KINDS if kind is not Refused}

    assert len({(kind.code, kind.status) for kind in own}) == len({kind.code for kind in own})


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind.status == 503])
def test_whoever_should_come_back_is_told_when(kind: type[GatewayError]) -> None:
    assert kind.retry_after and kind.retry_after > 0


FOREIGN = [
    (Http404(SECRET), 404),
    (SuspiciousOperation(SECRET), 400),
    (drf.NotAuthenticated("Send a key."), 401),
    (drf.AuthenticationFailed("No."), 401),
    (drf.PermissionDenied("No."), 403),
    (drf.MethodNotAllowed("PUT"), 405),
    (drf.ValidationError({"day": ["takes a day."]}), 400),
    (OperationalError(SECRET), 503),
    (InterfaceError(SECRET), 503),
    (RuntimeError(SECRET), 500),
    (RecursionError(SECRET), 500),
    (UnicodeEncodeError("utf-8", SECRET, 0, 1, SECRET), 500),
]


@pytest.mark.parametrize(("foreign", "status"), FOREIGN, ids=lambda value: type(value).__name__)
def test_a_foreign_exception_becomes_one_of_ours(foreign: Exception, status: int) -> None:
    error = error_handlers.as_gateway_error(foreign)

    assert error.status == status and SECRET not in error.message


def test_an_error_of_ours_stays_what_it_is() -> None:
    error = metering.NoCredit("No money.")

    assert error_handlers.as_gateway_error(error) is error


# --- Addresses and methods ------------------------------------------------------------------------


@pytest.fixture
def nobody() -> Client:
    return Client(enforce_csrf_checks=True, raise_request_exception=False)


@pytest.mark.parametrize("path", ["/nowhere", "/api/nowhere", "/api/", "/no/x", "/generate/", "/é"])
@pytest.mark.parametrize("method", ["get", "post", "put", "delete", "patch"])
def test_an_unknown_address_is_a_404_in_json(nobody: Client, method: str, path: str) -> None:
    assert is_clean(getattr(nobody, method)(path), 404)


@pytest.mark.parametrize("path", ["/", "/healthz", "/readyz"])
@pytest.mark.parametrize("method", ["post", "put", "delete", "patch"])
def test_an_open_address_is_only_read(nobody: Client, method: str, path: str) -> None:
    answer = getattr(nobody, method)(path)

    assert is_clean(answer, 405) and "GET" in answer["Allow"]


WRONG_METHODS = [
    ("get", "/generate"),
    ("put", "/api/chat"),
    ("patch", "/api/embed"),
    ("post", "/api/tags"),
    ("delete", "/usage"),
    ("get", "/api/pull"),
    ("post", "/api/delete"),
    ("get", "/models/llama3"),
]


@pytest.mark.parametrize(("method", "path"), WRONG_METHODS)
def test_a_wrong_method_is_a_405_in_json(
    olga: Caller, ollama: FakeOllama, method: str, path: str
) -> None:
    answer = getattr(olga.client, method)(path, headers=olga.headers)

    assert is_clean(answer, 405) and answer["Allow"]
    assert ollama.requests == []


@pytest.mark.parametrize("method", ["options", "trace", "head"])
@pytest.mark.parametrize("path", ["/generate", "/api/chat", "/models/pull"])
def test_odd_methods_reach_no_model_server(
    olga: Caller, ollama: FakeOllama, method: str, path: str
) -> None:
    answer = getattr(olga.client, method)(path, headers=olga.headers)

    assert answer.status_code in (200, 405)
    assert ollama.requests == [] and not Hold.objects.exists()


@pytest.mark.django_db
def test_a_foreign_host_is_a_400_in_json(nobody: Client) -> None:
    assert is_clean(nobody.get("/usage", headers={"host": "evil.example"}), 400)


def test_a_thousand_parameters_are_a_400(alice: Caller) -> None:
    query = "&".join(f"p{n}=1" for n in range(1001))

    assert is_clean(alice.client.get(f"/usage/history?{query}", headers=alice.headers), 400)


def test_a_query_of_a_million_characters_does_no_harm(alice: Caller) -> None:
    answer = alice.client.get("/usage/history?from=" + "9" * 10**6, headers=alice.headers)

    assert is_clean(answer, 400) and len(answer.content) < 1000


# --- What nobody foresaw --------------------------------------------------------------------------


def boom(*_args: Any, **_kwargs: Any) -> Any:
    raise RuntimeError(SECRET)


BREAKAGES = [
    (policy, "build"),
    (OllamaClient, "ask"),
    (protocol, "read_chunk"),
    (TokenCounter, "add"),
    (MeteredChunks, "__init__"),
    (metering.Demand, "__init__"),
]


@pytest.mark.usefixtures("priced")
@pytest.mark.parametrize(("place", "name"), BREAKAGES, ids=[name for _, name in BREAKAGES])
def test_an_unforeseen_error_tells_nothing_and_gives_the_hold_back(
    alice: Caller, ollama: FakeOllama, monkeypatch: pytest.MonkeyPatch, place: Any, name: str
) -> None:
    monkeypatch.setattr(place, name, boom)
    answer = alice.post("/api/generate", model="llama3", prompt="hi", stream=False)

    assert is_clean(answer, 500) and answer.json()["code"] == "internal_error"
    assert SECRET not in answer.content.decode() and "RuntimeError" not in answer.content.decode()
    assert not Hold.objects.filter(state="open").exists()
    assert alice.wallet.held == alice.wallet.spent == 0


@pytest.mark.usefixtures("priced")
def test_an_unforeseen_error_in_mid_stream_ends_it_with_an_error_line(
    alice: Caller, ollama: FakeOllama, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(native.OllamaRenderer, "chunk", boom)
    answer = alice.post("/api/generate", model="llama3", prompt="hi")
    [line] = b"".join(answer).splitlines()

    assert json.loads(line)["code"] == "internal_error" and SECRET.encode() not in line
    assert TokenUsage.objects.get().outcome == "gateway_failed"
    assert not Hold.objects.filter(state="open").exists()


def test_a_failure_outside_every_view_is_a_500_in_json(
    nobody: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("billing.middleware.LedgerMeter", boom)
    answer = nobody.get("/healthz")

    assert is_clean(answer, 500) and SECRET not in answer.content.decode()


def test_a_database_that_is_down_is_a_503(nobody: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    def down(*_args: Any) -> Any:
        raise OperationalError(SECRET)

    monkeypatch.setattr("accounts.authentication.KeyAuthentication.authenticate", down)
    answer = nobody.get("/usage")

    assert is_clean(answer, 503) and answer["Retry-After"] == "2"


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
