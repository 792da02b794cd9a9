"""What people try first: a browser, a probe by address, a slip of a name, another API's name."""

from typing import Any

import pytest
from django.test import Client

from accounts import keys
from billing.models import Hold, TokenUsage
from tests.fakes.ollama import FakeOllama
from tests.harness.callers import Caller, set_price

BROWSER = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"


# --- A browser -----------------------------------------------------------------------------------


def test_a_browser_at_the_root_gets_a_page_with_links(db: None) -> None:
    answer = Client().get("/", headers={"Accept": BROWSER})
    page = answer.content.decode()

    assert answer["Content-Type"].startswith("text/html") and answer.status_code == 200
    assert 'href="/admin/"' in page and "docs/clients.md" in page
    assert "http://testserver/v1" in page
    policy = answer["Content-Security-Policy"]
    assert "default-src 'none'" in policy and "script" not in policy and "unsafe" not in policy
    assert "<script" not in page and "style=" not in page


def test_the_style_sheet_of_that_page_is_there(db: None) -> None:
    answer = Client().get("/static/gateway/page.css")

    assert answer.status_code == 200 and "no-store" not in answer["Cache-Control"]


@pytest.mark.parametrize("accept", ["*/*", "application/json", ""])
@pytest.mark.parametrize("method", ["get", "head"])
def test_a_program_at_the_root_gets_what_ollama_answers(db: None, accept: str, method: str) -> None:
    answer = getattr(Client(), method)("/", headers={"Accept": accept})

    assert answer["Content-Type"].startswith("text/plain")
    assert "Accept" in answer["Vary"].split(", ")
    assert answer.content in (b"Ollama is running", b"")


def test_the_back_office_is_found_without_its_slash(db: None) -> None:
    answer = Client().get("/admin")

    assert (answer.status_code, answer["Location"]) == (302, "/admin/")


# --- A probe -------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["10.0.0.7:8000", "[fd00::7]:8000", "gateway_1", "*.example"])
def test_probes_are_answered_by_whatever_name_they_call(
    db: None, ollama: FakeOllama, settings: Any, host: str
) -> None:
    settings.ALLOWED_HOSTS = ["llm.example.com"]
    client = Client(raise_request_exception=False)

    assert client.get("/healthz", headers={"Host": host}).status_code == 200
    assert client.get("/readyz", headers={"Host": host}).status_code == 200
    assert client.get("/models", headers={"Host": host}).status_code == 400
    assert client.get("/", headers={"Host": host, "Accept": BROWSER}).status_code == 400
    assert client.get("/admin/", headers={"Host": host}).status_code == 400


# --- What caches keep ----------------------------------------------------------------------------


@pytest.mark.usefixtures("priced")
def test_no_answer_may_be_kept_by_a_cache(alice: Caller, ollama: FakeOllama) -> None:
    answers = [
        alice.get("/usage"),
        alice.get("/usage/history"),
        alice.get("/models"),
        alice.get("/v1/models"),
        alice.get("/nonsuch"),
        alice.post("/generate", model="llama3", prompt="hi"),
        alice.post("/api/chat", model="llama3", messages=[{"role": "user", "content": "hi"}]),
        alice.post("/generate", model="nonsuch", prompt="hi"),
        Client().get("/models"),
        Client().get("/healthz"),
    ]

    assert [answer["Cache-Control"] for answer in answers] == ["no-store"] * len(answers)


# --- Names from other APIs -----------------------------------------------------------------------

LENGTHS = ["max_tokens", "max_completion_tokens", "max_output_tokens", "max_new_tokens"]
NATIVE: dict[str, dict[str, Any]] = {
    "/generate": {"prompt": "hi"},
    "/api/generate": {"prompt": "hi"},
    "/chat": {"messages": [{"role": "user", "content": "hi"}]},
    "/api/chat": {"messages": [{"role": "user", "content": "hi"}]},
}


@pytest.mark.usefixtures("priced")
@pytest.mark.parametrize("path", NATIVE)
@pytest.mark.parametrize("name", [*LENGTHS, "num_predict"])
def test_another_apis_name_for_the_length_is_not_dropped(
    alice: Caller, ollama: FakeOllama, path: str, name: str
) -> None:
    answer = alice.post(path, model="llama3", **NATIVE[path], **{name: 5})

    assert answer.status_code == 400
    assert f"'{name}' has no effect here; use 'options.num_predict'." in answer.json()["error"]
    assert not Hold.objects.exists() and ollama.requests == []


@pytest.mark.usefixtures("priced")
@pytest.mark.parametrize("name", LENGTHS)
def test_nor_is_it_in_the_options(alice: Caller, ollama: FakeOllama, name: str) -> None:
    answer = alice.post("/generate", model="llama3", prompt="hi", options={name: 5})

    assert answer.status_code == 400
    assert f"'options.{name}' has no effect here; use 'num_predict'." in answer.json()["error"]


@pytest.mark.usefixtures("priced")
@pytest.mark.parametrize(("name", "value"), [("n", 3), ("best_of", 2), ("stop", ["\n"])])
def test_nor_is_what_else_changes_the_price(
    alice: Caller, ollama: FakeOllama, name: str, value: Any
) -> None:
    answer = alice.post("/generate", model="llama3", prompt="hi", **{name: value})

    assert answer.status_code == 400 and f"'{name}'" in answer.json()["error"]


@pytest.mark.usefixtures("priced")
@pytest.mark.parametrize("extra", [{"n": 1}, {"max_tokens": None}, {"temperature_x": 1}])
def test_what_changes_nothing_passes(
    alice: Caller, ollama: FakeOllama, extra: dict[str, Any]
) -> None:
    assert alice.post("/generate", model="llama3", prompt="hi", **extra).status_code == 200


# --- A slip of a name ----------------------------------------------------------------------------


@pytest.mark.usefixtures("priced")
@pytest.mark.parametrize("path", ["/generate", "/api/generate", "/v1/completions"])
@pytest.mark.parametrize(("slip", "meant"), [("lama3", "llama3"), ("Mistrall", "mistral")])
def test_a_slip_of_a_name_is_answered_with_the_name(
    alice: Caller, ollama: FakeOllama, path: str, slip: str, meant: str
) -> None:
    answer = alice.post(path, model=slip, prompt="hi")
    error = answer.json()["error"]

    assert answer.status_code == 404 and not TokenUsage.objects.exists()
    said = error if isinstance(error, str) else error["message"]
    assert said == f"There is no model '{slip}' for this key. Did you mean '{meant}'?"


@pytest.mark.usefixtures("priced")
def test_nothing_is_suggested_that_the_key_may_not_use(alice: Caller, ollama: FakeOllama) -> None:
    set_price("llama31", "0.001")  # Priced, and not installed.
    ollama.models.append("llama32:latest")  # Installed, and not priced.
    key, secret = keys.issue(alice.account, name="n", allowed_models=["mistral", "llama33"])

    assert "'llama3'?" in alice.post("/generate", model="llama39", prompt="hi").json()["error"]
    answer = Caller(key, secret).post("/generate", model="llama33", prompt="hi")
    assert answer.status_code == 404 and "GET /models lists" in answer.json()["error"]


def test_while_the_model_server_is_away_nobody_is_told_that_a_model_is_missing(
    alice: Caller, settings: Any
) -> None:
    settings.OLLAMA_BASE = "http://127.0.0.1:9"
    set_price("llama3", "0.001")

    answer = alice.post("/generate", model="lama3", prompt="hi")

    assert answer.json()["code"] == "upstream_down" and "mean" not in answer.json()["error"]


# --- The price list of `/usage` ------------------------------------------------------------------


@pytest.mark.usefixtures("priced")
def test_usage_lists_the_prices_of_what_models_lists(alice: Caller, ollama: FakeOllama) -> None:
    set_price("acme/secret-merger-finetune", "0.5")
    ollama.models.append("unpriced:latest")
    key, secret = keys.issue(alice.account, name="n", allowed_models=["mistral", "nonsuch"])
    narrow = Caller(key, secret)

    for caller in (alice, narrow):
        listed = {model["name"] for model in caller.get("/models").json()["models"]}
        assert set(caller.get("/usage").json()["pricing"]) == listed
    assert set(narrow.get("/usage").json()["pricing"]) == {"mistral:latest"}


@pytest.mark.usefixtures("priced")
def test_usage_needs_no_model_server(alice: Caller, settings: Any) -> None:
    settings.OLLAMA_BASE = "http://127.0.0.1:9"
    key, secret = keys.issue(alice.account, name="n", allowed_models=["mistral"])

    answer = Caller(key, secret).get("/usage")

    assert answer.status_code == 200 and set(answer.json()["pricing"]) == {"mistral:latest"}


# --- An empty list of models ---------------------------------------------------------------------


@pytest.mark.usefixtures("priced")
def test_an_empty_list_of_models_says_why(alice: Caller, ollama: FakeOllama) -> None:
    key, secret = keys.issue(alice.account, name="n", allowed_models=["nonsuch", "other:1b"])
    narrow = Caller(key, secret)

    answer = narrow.get("/models").json()

    assert answer["models"] == []
    assert answer["note"] == (
        "This key may use nonsuch, other:1b only, and none is installed with a price."
    )
    assert narrow.get("/api/tags").json() == {"models": []}
    assert narrow.get("/v1/models").json() == {"object": "list", "data": []}
    assert "note" not in alice.get("/models").json()


def test_where_nothing_is_priced_it_says_that(alice: Caller, ollama: FakeOllama) -> None:
    answer = alice.get("/models").json()

    assert answer == {"models": [], "note": "No model is installed that has a price."}
