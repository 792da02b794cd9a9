"""A key sees the models it may use; operators see all."""

from typing import Any

import pytest

from accounts import keys
from billing.models import Hold, TokenUsage
from tests.fakes.ollama import FakeOllama
from tests.fakes.script import reply
from tests.harness.callers import Caller

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


# --- Listing --------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/models", "/api/tags"])
def test_a_customer_sees_the_models_with_a_price(
    alice: Caller, ollama: FakeOllama, path: str
) -> None:
    ollama.models += ["phi3:latest", "secret:7b"]

    assert names(alice.get(path)) == PRICED


@pytest.mark.parametrize("path", ["/models", "/api/tags"])
def test_a_narrow_key_sees_its_own_model(narrow: Caller, ollama: FakeOllama, path: str) -> None:
    assert names(narrow.get(path)) == ["mistral:latest"]


@pytest.mark.parametrize("path", ["/models", "/api/tags"])
def test_an_operator_also_sees_what_waits_for_a_price(
    olga: Caller, ollama: FakeOllama, path: str
) -> None:
    ollama.models.append("phi3:latest")

    assert names(olga.get(path)) == [*PRICED, "phi3:latest"]


def test_a_model_that_waits_for_a_price_has_none(olga: Caller, ollama: FakeOllama) -> None:
    ollama.models.append("phi3:latest")

    assert olga.get("/models").json()["models"][-1]["price_per_1k"] is None


@pytest.mark.parametrize("path", ["/models", "/api/tags"])
def test_a_model_that_runs_elsewhere_is_hidden_from_all(
    alice: Caller, olga: Caller, ollama: FakeOllama, path: str
) -> None:
    remote = {
        "name": "llama3:latest",
        "remote_model": "llama3",
        "remote_host": "https://ollama.com",
    }
    ollama.answer("/api/tags", reply({"models": [remote]}))

    assert names(alice.get(path)) == names(olga.get(path)) == []


def test_a_price_is_shown_with_its_model(alice: Caller, ollama: FakeOllama) -> None:
    first = alice.get("/models").json()["models"][0]

    price = {"prompt": "0.002", "completion": "0.004", "currency": "USD"}
    assert first["price_per_1k"] == price and set(first) == {
        *("name", "size", "modified_at", "details", "price_per_1k")
    }


def test_what_is_loaded_is_shown_as_far_as_it_is_ones_own(
    alice: Caller, narrow: Caller, ollama: FakeOllama
) -> None:
    ollama.memory.models = ["llama3:latest"]

    assert names(alice.get("/api/ps")) == ["llama3:latest"]
    assert names(narrow.get("/api/ps")) == []


def test_a_model_that_was_loaded_under_another_name_is_hidden_under_it(
    alice: Caller, olga: Caller, ollama: FakeOllama
) -> None:
    """Ollama lists a model under the name that loaded it."""
    ollama.memory.models = ["somebodys-alias:latest", "mistral:latest"]

    assert names(alice.get("/api/ps")) == ["mistral:latest"]
    assert names(olga.get("/api/ps")) == ["somebodys-alias:latest", "mistral:latest"]


@pytest.mark.parametrize("path", ["/api/tags", "/api/version", "/"])
def test_head_is_answered_without_a_body(alice: Caller, ollama: FakeOllama, path: str) -> None:
    answer = alice.client.head(path, headers=alice.headers)

    assert (answer.status_code, answer.content) == (200, b"")


def test_the_version_is_the_model_servers(alice: Caller, ollama: FakeOllama) -> None:
    assert alice.get("/api/version").json() == {"version": "0.33.0"}


@pytest.mark.parametrize("path", ["/models", "/api/tags", "/api/ps", "/api/version"])
def test_without_a_model_server_a_listing_is_a_503(
    alice: Caller, ollama: FakeOllama, path: str
) -> None:
    ollama.down()

    assert error(alice.get(path)) == (503, "upstream_down")


# --- Showing --------------------------------------------------------------------------------------


def test_a_customer_is_not_shown_what_is_the_operators(alice: Caller, ollama: FakeOllama) -> None:
    answer = alice.post("/api/show", model="LLAMA3")

    assert set(answer.json()) == {
        *("license", "parameters", "details", "model_info", "capabilities", "modified_at")
    }
    assert b"SECRET" not in answer.content and b"/srv/ollama" not in answer.content
    assert ollama.requests[-1].json == {"model": "llama3:latest"}


def test_an_operator_is_shown_everything(olga: Caller, ollama: FakeOllama) -> None:
    shown = olga.post("/api/show", name="llama3", verbose=True, system="x").json()

    assert shown["system"] == "SECRET SYSTEM PROMPT" and "modelfile" in shown
    assert ollama.requests[-1].json == {"model": "llama3:latest"}


@pytest.mark.parametrize("model", ["phi3", "nobody"])
def test_a_customer_is_not_shown_a_model_without_a_price(
    alice: Caller, ollama: FakeOllama, model: str
) -> None:
    ollama.models.append("phi3:latest")

    assert error(alice.post("/api/show", model=model)) == (404, "model_not_found")
    assert ollama.requests == []


def test_a_narrow_key_is_shown_no_other_model(narrow: Caller, ollama: FakeOllama) -> None:
    assert error(narrow.post("/api/show", model="llama3")) == (403, "forbidden")
    assert ollama.requests == []


def test_a_priced_model_that_was_removed_is_a_404(alice: Caller, ollama: FakeOllama) -> None:
    ollama.models.remove("llama3:latest")

    assert error(alice.post("/api/show", model="llama3")) == (404, "model_not_found")
    assert error(alice.post("/generate", model="llama3", prompt="hi")) == (404, "model_not_found")
    assert not Hold.objects.exists() and not TokenUsage.objects.exists()
