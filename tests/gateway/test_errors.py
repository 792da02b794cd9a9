"""Every error is JSON in one format, with the right status, and shows no detail."""

import json
from typing import Any

import pytest
from django.core.exceptions import SuspiciousOperation
from django.db import InterfaceError, OperationalError
from django.http import Http404
from django.test import Client, RequestFactory
from rest_framework import exceptions as drf

from billing.models import Hold, TokenUsage
from gateway import metering
from gateway.dialects import ollama as native
from gateway.errors import GatewayError
from gateway.http import context, error_handlers
from gateway.metering import Refused
from gateway.relay.metered_chunks import MeteredChunks
from gateway.relay.token_counter import TokenCounter
from gateway.upstream import protocol
from gateway.upstream.client import OllamaClient
from gateway.validation import policy
from tests.fakes.ollama import FakeOllama
from tests.harness.callers import Caller
from tests.harness.errors import KINDS, SECRET, is_clean

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
