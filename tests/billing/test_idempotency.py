"""An `Idempotency-Key` pays once: the rules, route by route, in this process."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from billing import idempotency
from billing.leases import LeaseRenewer
from billing.models import Hold, IdempotencyKey, TokenUsage
from tests.fakes.ollama import FakeOllama
from tests.fakes.script import Status, error_line, reply, tokens
from tests.harness.callers import Caller, new_caller, set_price

pytestmark = [pytest.mark.usefixtures("priced"), pytest.mark.django_db]

MESSAGES = [{"role": "user", "content": "hello"}]
CHAT = {"model": "llama3", "messages": MESSAGES}
ROUTES: dict[str, dict[str, Any]] = {
    "/generate": {"model": "llama3", "prompt": "hello"},
    "/chat": CHAT,
    "/embedding": {"model": "nomic-embed-text", "input": "hello"},
    "/api/generate": {"model": "llama3", "prompt": "hello"},
    "/api/chat": CHAT,
    "/api/embed": {"model": "nomic-embed-text", "input": "hello"},
    "/api/embeddings": {"model": "nomic-embed-text", "prompt": "hello"},
    "/v1/chat/completions": CHAT,
    "/v1/completions": {"model": "llama3", "prompt": "hello"},
    "/v1/embeddings": {"model": "nomic-embed-text", "input": "hello"},
    "/v1/responses": {"model": "llama3", "input": "hello"},
    "/v1/messages": {**CHAT, "max_tokens": 20},
}
STREAMED = [path for path in ROUTES if "embed" not in path]


def post(caller: Caller, path: str, key: str | None, **body: Any) -> Any:
    """Send a request and read its response to the end."""
    headers = caller.headers | ({"Idempotency-Key": key} if key is not None else {})
    response = caller.client.post(path, body, content_type="application/json", headers=headers)
    if response.streaming:
        b"".join(response)
    return response


def error_of(path: str, response: Any) -> dict[str, Any]:
    """Return the code and the details of an error in the shape of the route's family."""
    found: dict[str, Any] = response.json()
    if path == "/v1/messages":
        details = found["error"]["details"]
        return {**details, "code": details["error_code"], "message": found["error"]["message"]}
    if path.startswith("/v1/"):
        return dict(found["error"])
    return {**found, "message": found["error"]}


@pytest.mark.parametrize("path", ROUTES)
def test_a_repeat_after_the_end_is_told_what_the_first_cost(
    path: str, alice: Caller, ollama: FakeOllama
) -> None:
    first = post(alice, path, "k1", **ROUTES[path])
    again = post(alice, path, "k1", **ROUTES[path])

    assert first.status_code == 200 and again.status_code == 409
    assert again["x-should-retry"] == "false"
    row = TokenUsage.objects.get()
    error = error_of(path, again)
    assert error["code"] == "idempotency_key_used"
    assert error["original_request_id"] == first["x-request-id"] == str(row.request_id)
    assert (error["cost"], error["currency"]) == (f"{row.cost:f}", "USD") and row.cost
    assert first["x-request-id"] in error["message"] and f"{row.cost:f} USD" in error["message"]
    assert len(ollama.requests) == 1


@pytest.mark.parametrize("path", STREAMED)
def test_a_streamed_repeat_is_refused_before_the_stream(
    path: str, alice: Caller, ollama: FakeOllama
) -> None:
    body = {**ROUTES[path], "stream": True}

    assert post(alice, path, "k1", **body).status_code == 200
    again = post(alice, path, "k1", **body)

    assert again.status_code == 409 and not again.streaming
    assert error_of(path, again)["code"] == "idempotency_key_used"
    assert len(ollama.requests) == 1 and TokenUsage.objects.count() == 1


@pytest.mark.parametrize("path", ROUTES)
def test_the_same_key_with_another_body_is_a_422(
    path: str, alice: Caller, ollama: FakeOllama
) -> None:
    post(alice, path, "k1", **ROUTES[path])
    other = post(alice, path, "k1", **ROUTES[path], user="somebody else")

    assert other.status_code == 422 and other["x-should-retry"] == "false"
    assert error_of(path, other)["code"] == "idempotency_key_mismatch"
    assert len(ollama.requests) == 1


def test_the_same_body_at_another_address_is_a_422(alice: Caller, ollama: FakeOllama) -> None:
    post(alice, "/chat", "k1", **CHAT)

    assert post(alice, "/api/chat", "k1", **CHAT).status_code == 422


def test_blanks_and_the_order_of_keys_are_no_difference(alice: Caller, ollama: FakeOllama) -> None:
    headers = alice.headers | {"Idempotency-Key": "k1"}
    bodies = ('{"model":"llama3","prompt":"hi"}', '{ "prompt": "hi", "model": "llama3" }')
    statuses = [
        alice.client.post(
            "/generate", body, content_type="application/json", headers=headers
        ).status_code
        for body in bodies
    ]

    assert statuses == [200, 409]


def test_other_keys_and_other_api_keys_are_served(
    alice: Caller, bob: Caller, charlie: Caller, ollama: FakeOllama
) -> None:
    callers = [(alice, "k1"), (alice, "k2"), (alice, "K1"), (bob, "k1"), (charlie, "k1")]
    statuses = [post(caller, "/chat", key, **CHAT).status_code for caller, key in callers]

    assert statuses == [200] * 5


def test_without_the_header_every_request_is_a_new_one(alice: Caller, ollama: FakeOllama) -> None:
    assert [post(alice, "/chat", None, **CHAT).status_code for _ in range(2)] == [200, 200]
    assert not IdempotencyKey.objects.exists()


def test_without_the_header_no_statement_is_added(alice: Caller, ollama: FakeOllama) -> None:
    with CaptureQueriesContext(connection) as plain:
        post(alice, "/chat", None, **CHAT)
    with CaptureQueriesContext(connection) as named:
        post(alice, "/chat", "k1", **CHAT)

    assert not any("idempotency" in query["sql"] for query in plain)
    assert len(named) == len(plain) + 1


BAD = {"empty": "", "long": "x" * 256, "control": "a\tb", "umlaut": "schlüssel"}


@pytest.mark.parametrize("value", BAD.values(), ids=BAD)
@pytest.mark.parametrize("path", ["/chat", "/api/chat", "/v1/chat/completions"])
def test_a_malformed_key_is_a_400(path: str, value: str, alice: Caller, ollama: FakeOllama) -> None:
    response = post(alice, path, value, **CHAT)

    assert response.status_code == 400 and "Idempotency-Key" in response.content.decode()
    assert not ollama.requests


def test_the_longest_key_is_taken(alice: Caller, ollama: FakeOllama) -> None:
    longest = "".join(map(chr, range(33, 127))) * 3
    assert post(alice, "/chat", longest[:255], **CHAT).status_code == 200


def test_neither_the_key_nor_the_prompt_is_stored(alice: Caller, ollama: FakeOllama) -> None:
    post(alice, "/generate", "my-own-name", model="llama3", prompt="my secret prompt")

    stored = str(IdempotencyKey.objects.values().get())
    assert "my-own-name" not in stored and "secret" not in stored


# --- What does not use a key up -------------------------------------------------------------------


def rejected(caller: Caller, key: str) -> dict[str, Callable[[], Any]]:
    return {
        "400": lambda: post(caller, "/chat", key, model="llama3", messages=7),
        "404": lambda: post(caller, "/chat", key, model="nonsuch", messages=MESSAGES),
    }


@pytest.mark.parametrize("why", ["400", "404"])
def test_a_rejected_request_does_not_use_the_key_up(
    why: str, alice: Caller, ollama: FakeOllama
) -> None:
    refused = rejected(alice, "k1")[why]()

    assert str(refused.status_code) == why
    assert post(alice, "/chat", "k1", **CHAT).status_code == 200


def test_a_request_without_credit_does_not_use_the_key_up(ollama: FakeOllama) -> None:
    from billing import ledger
    from billing.models import Entry

    poor = new_caller("Poor", credit="0")
    assert post(poor, "/chat", "k1", **CHAT).status_code == 402

    ledger.post(poor.account, 5, kind=Entry.Kind.TOP_UP, reason="Paid")  # type: ignore[arg-type]

    assert post(poor, "/chat", "k1", **CHAT).status_code == 200


FAILURES = {
    "an error": [Status(500), error_line("boom")],
    "busy": reply({"error": "server busy"}, 503),
    "refused": reply({"error": "no"}, 400),
    "cut": tokens([], path="/api/chat", done=False),
}


@pytest.mark.parametrize("script", FAILURES.values(), ids=FAILURES)
def test_a_failure_that_costs_nothing_does_not_use_the_key_up(
    script: Any, alice: Caller, ollama: FakeOllama
) -> None:
    ollama.answer("/api/chat", script, times=1)

    assert post(alice, "/chat", "k1", **CHAT).status_code >= 400
    # Not even for the body: nothing was charged for the first.
    assert post(alice, "/chat", "k1", **CHAT, user="me").status_code == 200
    assert post(alice, "/chat", "k1", **CHAT, user="me").status_code == 409


def test_a_dead_model_server_does_not_use_the_key_up(alice: Caller, ollama: FakeOllama) -> None:
    ollama.down()
    assert post(alice, "/chat", "k1", **CHAT).status_code == 503
    ollama.up()

    assert post(alice, "/chat", "k1", **CHAT).status_code == 200


def test_a_free_request_uses_the_key_up_too(alice: Caller, ollama: FakeOllama) -> None:
    """Free is a price. The response was delivered."""
    set_price("mistral", "0")
    ollama.answer("/api/generate", tokens("ab"))

    asked = {"model": "mistral", "prompt": "hi"}
    assert [post(alice, "/generate", "k1", **asked).status_code for _ in range(2)] == [200, 409]


# --- Time -----------------------------------------------------------------------------------------


def expire() -> None:
    IdempotencyKey.objects.update(expires_at=timezone.now() - timedelta(seconds=1))


def test_a_key_lasts_a_day(alice: Caller, ollama: FakeOllama) -> None:
    post(alice, "/chat", "k1", **CHAT)
    left = IdempotencyKey.objects.get().expires_at - timezone.now()
    assert timedelta(hours=23, minutes=59) < left <= timedelta(hours=24)
    expire()

    assert post(alice, "/chat", "k1", **CHAT).status_code == 200
    assert post(alice, "/chat", "k1", **CHAT).status_code == 409
    assert TokenUsage.objects.count() == 2 and IdempotencyKey.objects.count() == 1


def test_expired_keys_are_removed_in_the_background(alice: Caller, ollama: FakeOllama) -> None:
    post(alice, "/chat", "k1", **CHAT)
    expire()
    post(alice, "/chat", "k2", **CHAT)

    LeaseRenewer().tick()

    assert IdempotencyKey.objects.count() == 1
    assert idempotency.forget_expired() == 0


def test_a_key_whose_hold_is_gone_is_free(alice: Caller, ollama: FakeOllama) -> None:
    post(alice, "/chat", "k1", **CHAT)
    entry = IdempotencyKey.objects.get()
    assert Hold.objects.filter(pk=entry.request_id).exists()
    other = "01900000-0000-7000-8000-000000000000"
    IdempotencyKey.objects.filter(pk=entry.pk).update(request_id=other)

    assert post(alice, "/chat", "k1", **CHAT).status_code == 200
