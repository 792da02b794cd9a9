"""No customer reaches data of another, or more than the key allows, by any URL or field."""

import json
import re
from typing import Any

import pytest
from django.db.models import Model
from django.test import Client
from django.urls import URLPattern

from accounts import keys
from accounts.models import Account, ApiKey, Membership
from billing.models import Budget, Hold, TokenUsage
from gateway import urls
from gateway.views.inference import InferenceView
from tests.fakes.ollama import FakeOllama
from tests.harness.callers import Caller
from tests.harness.urls import paths

ROUTES = [
    f"/{pattern.pattern}"
    for pattern in urls.urlpatterns
    if isinstance(pattern, URLPattern)
    and getattr(pattern.callback, "view_class", None) is InferenceView
]
# What every family reads its prompt from.
PROMPT_FIELDS = {
    "stream": False,
    "prompt": "hi",
    "messages": [{"role": "user", "content": "hi"}],
    "input": "hi",
}
EMBEDS = ("/embedding", "/api/embed", "/api/embeddings", "/v1/embeddings")


def body_for(path: str, **fields: Any) -> dict[str, Any]:
    model = "nomic-embed-text" if path in EMBEDS else "mistral"
    # To /v1/responses a prompt is a template that is kept elsewhere.
    prompt_fields = {"input": "hi"} if path == "/v1/responses" else PROMPT_FIELDS
    # Anthropic's route requires it; the native ones reject it.
    cap = {"max_tokens": 8} if path == "/v1/messages" else {}
    return {"model": model, **prompt_fields, **cap, **fields}


def test_the_routes_under_test_include_every_family() -> None:
    assert {"/generate", "/api/chat", "/v1/responses", "/v1/messages", *EMBEDS} <= set(ROUTES)


# --- Models ---------------------------------------------------------------------------------------

SPELLINGS = [
    *("llama3", "llama3:latest", "LLAMA3", "Llama3:LATEST", " llama3", "llama3 ", "llama3\n"),
    *("library/llama3", "registry.ollama.ai/library/llama3:latest", "hf.co/llama3", "llama3@x"),
    *("nomic-embed-text/../llama3", "nomic-embed-text,llama3", "", "*"),
]
OTHER_KEYS = ['"Model"', '"MODEL"', '"model"', '"mode\\u006c"', '"model "', '"name"', '"from"']


@pytest.fixture
def limited(alice: Caller) -> Caller:
    """Alice with a key for every model but llama3."""
    allowed = ["mistral:latest", "nomic-embed-text:latest"]
    key, secret = keys.issue(alice.account, name="limited", allowed_models=allowed)
    return Caller(key, secret)


@pytest.mark.usefixtures("priced")
@pytest.mark.parametrize("path", ROUTES)
def test_a_key_for_some_models_cannot_use_another_by_any_spelling(
    limited: Caller, ollama: FakeOllama, path: str
) -> None:
    for spelled in SPELLINGS:
        response = limited.post(path, body_for(path, model=spelled))
        assert response.status_code in (400, 403, 404), spelled
    assert ollama.requests == [] and not Hold.objects.exists()

    assert limited.post(path, body_for(path)).status_code == 200


@pytest.mark.usefixtures("priced")
@pytest.mark.parametrize("path", ROUTES)
@pytest.mark.parametrize("other", OTHER_KEYS)
def test_no_other_field_names_the_model(
    limited: Caller, ollama: FakeOllama, path: str, other: str
) -> None:
    plain = json.dumps(body_for(path))
    for body in (plain[:-1] + f', {other}: "llama3"}}', f'{{{other}: "llama3", ' + plain[1:]):
        limited.post(path, body.encode())

    assert not [sent for sent in ollama.requests if b"llama3" in sent.body]


# --- Data of other customers ----------------------------------------------------------------------


def test_only_models_are_named_in_a_url() -> None:
    """So no URL takes the id of another customer's row."""
    varied = {path for path in paths() if re.search(r"/1(/|$)", path)}

    ours = {path for path in varied if not path.startswith("/admin/")}
    assert ours == {"/models/1", "/v1/models/1"}


# --- Fields that do not exist ---------------------------------------------------------------------

TABLES: list[type[Model]] = [ApiKey, Hold, TokenUsage, Budget, Account, Membership]
# What a request may say, and a table happens to call the same.
SENT_FIELDS = {"model", "name", "user", "prompt_tokens"}
CHANGING = {"id", "request_id", "started_at", "settled_at", "day"}


def columns() -> set[str]:
    fields = [field for table in TABLES for field in table._meta.concrete_fields]
    return {name for field in fields for name in (field.name, field.attname)} - SENT_FIELDS


def forged(charlie: Caller) -> dict[str, Any]:
    """Every column of the tables, with a value that an attacker would want."""
    wishes = {"account": charlie.account.pk, "key": charlie.key.pk, "scopes": ["models"]}
    wishes |= {"user": charlie.key.user.pk, "billed": False, "allowed_models": [], "unit": "x"}
    return {name: wishes.get(name.removesuffix("_id"), 0) for name in columns()}


def row_of(response: Any) -> dict[str, Any]:
    assert response.status_code == 200, response.content
    row = TokenUsage.objects.values().latest("pk")
    return {name: value for name, value in row.items() if name not in CHANGING}


def state_of(caller: Caller) -> list[Any]:
    kept = [*ApiKey.objects.order_by("pk").values(), *Account.objects.order_by("pk").values()]
    limits = Budget.objects.order_by("pk").values("pk", "account", "key", "unit", "limit")
    return [*kept, *limits, *Membership.objects.order_by("pk").values()]


@pytest.mark.usefixtures("priced")
@pytest.mark.parametrize("path", ROUTES)
def test_no_column_can_be_set_by_a_field_of_its_name(
    alice: Caller, charlie: Caller, ollama: FakeOllama, path: str
) -> None:
    before, plain = state_of(alice), row_of(alice.post(path, body_for(path)))

    wishes = forged(charlie)
    for fields in (wishes, {"options": wishes}, {"metadata": wishes}, {"user": wishes}):
        response = alice.post(path, {**body_for(path), **fields})
        assert response.status_code == 400 or row_of(response) == plain
    address = path + "?" + "&".join(f"{name}={value}" for name, value in wishes.items())
    assert row_of(alice.post(address, body_for(path))) == plain
    assert state_of(alice) == before
    assert not Hold.objects.exclude(account=alice.account).exists()


@pytest.mark.usefixtures("priced")
def test_each_column_as_a_field_is_rejected_or_ignored(
    alice: Caller, charlie: Caller, ollama: FakeOllama
) -> None:
    plain = row_of(alice.post("/chat", body_for("/chat")))

    for name, value in forged(charlie).items():
        response = alice.post("/chat", {**body_for("/chat"), name: value})
        assert response.status_code == 400 or row_of(response) == plain, name


# --- Other origins --------------------------------------------------------------------------------

ORIGIN = {"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"}


@pytest.mark.parametrize("path", sorted(set(paths())))
def test_pages_of_other_origins_are_not_allowed(alice: Caller, path: str) -> None:
    headers = {**ORIGIN, "Access-Control-Request-Headers": "authorization"}
    before = [Client().options(path, headers=headers), Client().get(path, headers=headers)]
    after = alice.client.get(path, headers={**alice.headers, **headers})

    for response in (*before, after):
        assert not [name for name in response.headers if name.lower().startswith("access-control")]
