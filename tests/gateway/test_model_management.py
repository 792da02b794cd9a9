"""Operators pull, load, unload and delete models; customers may not."""

import json
from typing import Any

import pytest

from accounts import keys
from billing.models import Hold, TokenUsage
from gateway.upstream import client
from tests.fakes.ollama import FakeOllama
from tests.fakes.script import Line, error_line
from tests.harness.callers import Caller, set_price

pytestmark = pytest.mark.usefixtures("priced")


PRICED = ["llama3:latest", "mistral:latest", "nomic-embed-text:latest"]


@pytest.fixture
def narrow(alice: Caller) -> Caller:
    """A key that may use mistral only."""
    key, secret = keys.issue(alice.account, name="narrow", allowed_models=["MISTRAL"])
    return Caller(key, secret)


def names(answer: Any) -> list[str]:
    assert answer.status_code == 200
    return [entry["name"] for entry in answer.json()["models"]]


def error(answer: Any) -> tuple[int, str]:
    assert set(answer.json()) == {"error", "code", "request_id"}
    return answer.status_code, answer.json()["code"]


# --- Pulling --------------------------------------------------------------------------------------


def test_a_pull_streams_its_progress_on_ollamas_address(olga: Caller, ollama: FakeOllama) -> None:
    answer = olga.post("/api/pull", model="Phi3")
    lines = [json.loads(line) for line in b"".join(answer).splitlines()]

    assert answer.streaming and answer["Content-Type"] == "application/x-ndjson"
    assert lines[0] == {"status": "pulling manifest"} and lines[-1] == {"status": "success"}
    assert any(line.get("completed") == 400 for line in lines)
    assert ollama.requests[-1].json == {"model": "phi3:latest", "stream": True}


@pytest.mark.parametrize(
    ("path", "fields"), [("/models/pull", {}), ("/api/pull", {"stream": False})]
)
def test_a_pull_answers_once_at_its_end(
    olga: Caller, ollama: FakeOllama, path: str, fields: dict[str, Any]
) -> None:
    answer = olga.post(path, model="phi3", **fields)

    assert answer.json() == {"status": "success"} and "phi3:latest" in ollama.models
    assert ollama.requests[-1].json == {"model": "phi3:latest", "stream": True}


def test_a_pull_streams_on_our_own_address_if_asked(olga: Caller, ollama: FakeOllama) -> None:
    answer = olga.post("/models/pull", model="phi3", stream=True)

    assert b"".join(answer).splitlines()[-1] == b'{"status":"success"}'


def test_a_pull_of_an_unknown_model_is_a_404(olga: Caller, ollama: FakeOllama) -> None:
    assert error(olga.post("/models/pull", model="nobody")) == (404, "model_not_found")


def test_a_streamed_pull_of_an_unknown_model_ends_with_an_error(
    olga: Caller, ollama: FakeOllama
) -> None:
    answer = olga.post("/api/pull", model="nobody")
    lines = [json.loads(line) for line in b"".join(answer).splitlines()]

    assert lines[0] == {"status": "pulling manifest"}
    assert lines[-1]["error"] == "model 'nobody:latest' not found" and len(lines) == 2


@pytest.mark.parametrize(
    "cause",
    [
        "pull model manifest: dial tcp: lookup registry.ollama.ai: no such host",
        "pull model manifest: http: server gave HTTP response to HTTPS client",
        "pull model manifest: tls: failed to verify certificate",
        "max retries exceeded",
    ],
)
def test_a_registry_that_cannot_be_reached_is_said_and_why_is_logged(
    olga: Caller, ollama: FakeOllama, caplog: pytest.LogCaptureFixture, cause: str
) -> None:
    ollama.answer("/api/pull", Line({"status": "pulling manifest"}), error_line(cause))

    answer = olga.post("/models/pull", model="phi3")

    assert error(answer) == (502, "registry_unreachable")
    assert answer.json()["error"] == "The registry could not be reached."
    assert cause in caplog.text


def test_a_model_that_was_pulled_is_seen_at_once(
    olga: Caller, alice: Caller, ollama: FakeOllama
) -> None:
    set_price("phi3", "0.001")
    assert error(alice.post("/generate", model="phi3", prompt="hi")) == (404, "model_not_found")

    olga.post("/models/pull", model="phi3")

    assert alice.post("/generate", model="phi3", prompt="hi").status_code == 200


def test_a_model_that_was_deleted_is_gone_at_once(
    olga: Caller, alice: Caller, ollama: FakeOllama
) -> None:
    assert alice.post("/generate", model="llama3", prompt="hi").status_code == 200

    olga.client.delete("/models/llama3", headers=olga.headers)

    assert error(alice.post("/generate", model="llama3", prompt="hi")) == (404, "model_not_found")


def test_a_pull_that_goes_backwards_or_breaks_off_is_passed_on(
    olga: Caller, ollama: FakeOllama
) -> None:
    seen: dict[str, Any] = {"status": "pulling 01", "total": 9}
    steps = [{**seen, "completed": done} for done in (5, 3)]
    ollama.answer("/api/pull", map(Line, [*steps, {"status": "pulling 02"}]))
    answer = olga.post("/api/pull", model="phi3")
    lines = [json.loads(line) for line in b"".join(answer).splitlines()]

    assert lines[:3] == [*steps, {"status": "pulling 02"}]
    assert lines[-1]["code"] == "upstream_broke"


def test_pulling_costs_nothing(olga: Caller, ollama: FakeOllama) -> None:
    olga.post("/models/pull", model="phi3")

    assert not Hold.objects.exists() and not TokenUsage.objects.exists()


ELSEWHERE = [
    "registry.evil/ns/x",
    "hf.co/user/repo",
    "10.0.0.5:8080/ns/x",
    "169.254.169.254/latest/meta-data",
    "https://registry.evil/ns/x",
    "registry.ollama.ai:8080/library/llama3",
    "registry.ollama.ai.evil/library/llama3",
    "localhost:11434/library/llama3",
    "_/library/x",
]

NO_NAMES = [
    "../x",
    "../../etc/passwd",
    "x@sha256:" + "0" * 64,
    "a" * 300,
    "x" * 10_000,
    "a/b/c/d",
    "x:",
    "/x",
    "x y",
    "x\x00",
    "x%2f..%2fy",
    "http://127.0.0.1/x",
    "file:///etc/passwd",
    "x:cloud",
    "x:20b-cloud",
    "ｘ",
    "",
    " ",
]


@pytest.mark.parametrize("path", ["/models/pull", "/api/pull"])
@pytest.mark.parametrize("model", ELSEWHERE)
def test_nothing_is_pulled_from_a_host_that_is_not_listed(
    olga: Caller, ollama: FakeOllama, path: str, model: str
) -> None:
    assert error(olga.post(path, model=model))[0] in (400, 403)
    assert ollama.requests == []


@pytest.mark.parametrize("path", ["/models/pull", "/api/pull"])
@pytest.mark.parametrize("model", NO_NAMES, ids=lambda model: repr(model)[:24])
def test_nothing_is_pulled_by_a_name_that_is_none(
    olga: Caller, ollama: FakeOllama, path: str, model: str
) -> None:
    assert error(olga.post(path, model=model)) == (400, "invalid_request")
    assert ollama.requests == []


def test_a_listed_host_may_be_pulled_from(olga: Caller, ollama: FakeOllama, settings: Any) -> None:
    settings.PULL_REGISTRIES = ["registry.ollama.ai", "hf.co"]
    olga.post("/models/pull", model="hf.co/User/Repo:Q4", insecure=True, username="x")

    assert ollama.requests[-1].json == {"model": "hf.co/user/repo:q4", "stream": True}


def test_a_registry_without_tls_has_to_be_named(
    olga: Caller, ollama: FakeOllama, settings: Any
) -> None:
    settings.PULL_REGISTRIES = ["registry.ollama.ai", "10.0.0.7:5000"]
    settings.PULL_INSECURE_REGISTRIES = ["10.0.0.7:5000"]

    olga.post("/models/pull", model="10.0.0.7:5000/library/phi3")
    olga.post("/models/pull", model="phi3", insecure=True)

    sent = [request.json for request in ollama.requests]
    assert [body.get("insecure") for body in sent] == [True, None]


# --- Loading and unloading ------------------------------------------------------------------------

EMPTY: list[tuple[str, dict[str, Any]]] = [
    ("/api/generate", {}),
    ("/api/chat", {"messages": []}),
    ("/api/embed", {"input": []}),
]


@pytest.mark.parametrize(("path", "fields"), EMPTY)
@pytest.mark.parametrize(("keep_alive", "reason"), [(0, "unload"), ("0s", "unload"), (-1, "load")])
def test_a_customer_neither_loads_nor_unloads(
    alice: Caller,
    ollama: FakeOllama,
    path: str,
    fields: dict[str, Any],
    keep_alive: Any,
    reason: str,
) -> None:
    answer = alice.post(path, model="mistral", keep_alive=keep_alive, **fields).json()

    assert answer.get("done_reason", reason) == reason
    assert answer["usage"]["total_tokens"] == 0 and ollama.requests == []


@pytest.mark.parametrize(("path", "fields"), EMPTY)
def test_an_operator_loads_and_unloads(
    olga: Caller, ollama: FakeOllama, path: str, fields: dict[str, Any]
) -> None:
    ollama.memory.models = ["llama3:latest"]
    ollama.models.append("unpriced:1b")

    loaded = olga.post(path, model="unpriced:1b", keep_alive="5m", **fields)
    assert loaded.status_code == 200 and loaded.json().get("done_reason", "load") == "load"
    assert ollama.memory.models == ["llama3:latest", "unpriced:1b"]

    unloaded = olga.post(path, model="llama3", keep_alive=0, **fields)
    assert unloaded.status_code == 200
    assert unloaded.json().get("done_reason", "unload") == "unload"
    assert ollama.memory.models == ["unpriced:1b"]


def test_a_missing_model_is_not_loaded(olga: Caller, alice: Caller, ollama: FakeOllama) -> None:
    set_price("absent", "0.001")

    for caller in (olga, alice):
        assert error(caller.post("/api/generate", model="absent")) == (404, "model_not_found")


# --- Deleting -------------------------------------------------------------------------------------


def test_a_model_is_deleted_by_address(olga: Caller, ollama: FakeOllama) -> None:
    answer = olga.client.delete("/models/LLAMA3:latest", headers=olga.headers)

    assert answer.json() == {"status": "deleted", "model": "LLAMA3:latest"}
    assert "llama3:latest" not in ollama.models


def test_a_name_with_slashes_is_deleted_by_address(olga: Caller, ollama: FakeOllama) -> None:
    ollama.models.append("hf.co/user/repo:q4")
    answer = olga.client.delete("/models/hf.co/User/Repo:Q4", headers=olga.headers)

    assert answer.status_code == 200 and "hf.co/user/repo:q4" not in ollama.models


@pytest.mark.parametrize("field", ["model", "name"])
def test_a_model_is_deleted_by_body(olga: Caller, ollama: FakeOllama, field: str) -> None:
    answer = olga.delete("/api/delete", **{field: "llama3"})

    assert (answer.status_code, answer.content) == (200, b"")
    assert "llama3:latest" not in ollama.models


def test_deleting_what_is_not_there_is_a_404(olga: Caller, ollama: FakeOllama) -> None:
    assert error(olga.delete("/api/delete", model="nobody")) == (404, "model_not_found")
    answer = olga.client.delete("/models/nobody", headers=olga.headers)
    assert error(answer) == (404, "model_not_found")


@pytest.mark.parametrize(
    "name", ["a%20b", "%00", "..%2fx", "x@sha256:0", "a/b/c/d", "x:cloud", "%ff"]
)
def test_nothing_is_deleted_by_a_name_that_is_none(
    olga: Caller, ollama: FakeOllama, name: str
) -> None:
    answer = olga.client.delete(f"/models/{name}", headers=olga.headers)

    assert error(answer) == (400, "invalid_request") and ollama.requests == []


# --- Customers ------------------------------------------------------------------------------------


def test_customers_neither_pull_nor_delete(alice: Caller, ollama: FakeOllama) -> None:
    answers = [alice.post(path, model="phi3") for path in ("/models/pull", "/api/pull")]
    answers += [alice.delete(path, model="llama3") for path in ("/api/delete", "/models/llama3")]

    assert {error(answer) for answer in answers} == {(403, "forbidden")}
    assert ollama.requests == [] and ollama.models == PRICED


def test_the_model_server_is_asked_by_fixed_addresses_only() -> None:
    assert {path for _method, path in client.ROUTES.values()} == {
        *("/api/generate", "/api/chat", "/api/embed", "/api/tags", "/api/show"),
        *("/api/ps", "/api/version", "/api/pull", "/api/delete"),
    }
