"""The complete product without fakes: gunicorn, the ledger and a real language model."""

import json
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import ollama as official
import pytest
import requests

from accounts.models import Account
from billing import reconciliation
from billing.models import TokenUsage
from gateway.diagnosis import model_server
from tests.harness.callers import Caller, set_price
from tests.harness.gateway import database_url, eventually
from tests.servers.embedded import EmbeddedModelServer
from tests.servers.gunicorn import Gunicorn

pytest.importorskip("xllamacpp", reason="the embedded engine's wheels are not installed")

MODEL = "smollm2:135m"
EMBED = "smollm2-embed:135m"
QUESTION = {"model": MODEL, "prompt": "Why is the sky blue?", "options": {"num_predict": 24}}


@pytest.fixture(scope="module")
def engine() -> Iterator[EmbeddedModelServer]:
    with EmbeddedModelServer(parallel=2) as server:
        yield server


@pytest.fixture(scope="module")
def gateway(django_db_setup: None, engine: Any) -> Iterator[Gunicorn]:
    from django.conf import settings

    env = {
        "DJANGO_SETTINGS_MODULE": "config.settings",
        "SECRET_KEY": settings.SECRET_KEY,
        "DATABASE_URL": database_url(),
        "OLLAMA_BASE": engine.url,
    }
    with Gunicorn(env) as server:
        yield server


@pytest.fixture
def alice_with_a_price(transactional_db: None, alice: Caller) -> Caller:
    set_price(MODEL, "0.0001", "0.0002")
    set_price(EMBED, "0.0001")
    return alice


def post(gateway: Gunicorn, caller: Caller, path: str, body: dict[str, Any]) -> Any:
    url = f"{gateway.url}{path}"
    return requests.post(url, json=body, headers=caller.headers, timeout=60)


def test_a_response_of_a_real_model_is_billed_exactly(
    gateway: Gunicorn, alice_with_a_price: Caller
) -> None:
    alice = alice_with_a_price
    whole = post(gateway, alice, "/generate", QUESTION).json()
    streamed = post(gateway, alice, "/generate", {**QUESTION, "stream": True}).text.splitlines()
    chat = {"model": MODEL, "messages": [{"role": "user", "content": "Say hello."}]}
    chatted = post(gateway, alice, "/chat", {**chat, "options": {"num_predict": 12}}).json()
    embedded = post(gateway, alice, "/embedding", {"model": EMBED, "input": "hello"}).json()

    usages = [
        whole["usage"],
        json.loads(streamed[-1])["usage"],
        chatted["usage"],
        embedded["usage"],
    ]
    assert whole["response"].strip() and chatted["message"]["content"].strip()
    assert 0 < whole["usage"]["completion_tokens"] <= 24 and len(embedded["embedding"]) > 100
    usage = requests.get(f"{gateway.url}/usage", headers=alice.headers, timeout=10).json()
    assert Decimal(usage["cost"]) == sum(Decimal(each["cost"]) for each in usages) > 0
    assert usage["total_tokens"] == sum(each["total_tokens"] for each in usages)
    assert not any(rows for _check, rows in reconciliation.differences())


def test_check_ollama_measures_a_real_model(
    engine: EmbeddedModelServer, alice_with_a_price: Caller, settings: Any
) -> None:
    settings.OLLAMA_BASE, settings.ISOLATE_PROMPTS = engine.url, True
    findings = list(model_server.examine(600))
    by_subject = {each.subject: each for each in findings}

    assert (
        by_subject["prompts"].state == "ok"
        and "smollm2:135m read a text" in by_subject["prompts"].message
    )
    assert by_subject["version"].state == "warning" and "embedded" in by_subject["version"].message
    assert "smollm2:135m reads at most 2,048 tokens." in [each.message for each in findings]
    assert "native" in by_subject["templates"].message


def test_an_account_uses_the_prompt_cache_of_its_own_prompts_only(
    gateway: Gunicorn, engine: EmbeddedModelServer, alice_with_a_price: Caller, charlie: Caller
) -> None:
    """Counted in tokens that llama.cpp processed, not in time."""
    before = len(engine.state()["processed"])
    # Long enough that the template's own beginning is less than a tenth of it: llama.cpp reads a
    # prompt into the slot of another one with which it shares more than that.
    text = " ".join(f"stone{number}" for number in range(200))
    chat = {"model": MODEL, "messages": [{"role": "user", "content": text}]}
    Account.objects.update(isolate_prompts=True)

    for caller in (alice_with_a_price, charlie, alice_with_a_price):
        post(gateway, caller, "/chat", {**chat, "options": {"num_predict": 1}})
    Account.objects.update(isolate_prompts=False)
    for caller in (alice_with_a_price, charlie):
        post(gateway, caller, "/chat", {**chat, "options": {"num_predict": 1}})

    counts = engine.state()["processed"][before:]
    alice_first, charlie_same, alice_again, not_isolated, charlie_guesses = counts
    assert min(alice_first, charlie_same, not_isolated) > 100
    assert max(alice_again, charlie_guesses) < 10


def test_the_official_client_works_with_a_real_model(
    gateway: Gunicorn, alice_with_a_price: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OLLAMA_API_KEY", alice_with_a_price.secret)
    client = official.Client(host=gateway.url)
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}

    answer = client.chat(
        model=MODEL,
        messages=[{"role": "user", "content": "A number, as JSON."}],
        format=schema,
        options={"num_predict": 40, "temperature": 0},
    )

    assert isinstance(json.loads(answer.message.content or "")["n"], int)
    assert {model.model for model in client.list().models} == {MODEL, EMBED}


def test_a_disconnect_stops_a_real_model(
    gateway: Gunicorn, engine: EmbeddedModelServer, alice_with_a_price: Caller
) -> None:
    body = {"model": MODEL, "prompt": "Tell me a long story.", "options": {"num_predict": 2000}}
    with requests.post(
        f"{gateway.url}/api/generate",
        json=body,
        headers=alice_with_a_price.headers,
        stream=True,
        timeout=30,
    ) as answer:
        next(answer.iter_lines())

    assert engine.wait_until(lambda state: state["in_use"] == 0)["disconnected"] == 1
    row = eventually(lambda: TokenUsage.objects.first())
    assert row.outcome == "client_left" and row.billed and 0 < row.completion_tokens < 2000
