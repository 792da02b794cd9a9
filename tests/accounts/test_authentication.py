"""A valid key authenticates with one query; everything else gets a 401."""

from datetime import timedelta
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.utils import timezone
from hypothesis import HealthCheck, given
from hypothesis import settings as examples
from hypothesis import strategies as st
from knox.crypto import hash_token

from accounts import keys, last_used
from accounts.models import Account, ApiKey, Membership
from billing.models import Hold
from tests.fakes.ollama import FakeOllama
from tests.harness.callers import Caller


@pytest.fixture(autouse=True)
def no_flush(monkeypatch: pytest.MonkeyPatch) -> None:
    """Write no pending "last used" times while a test counts queries."""
    monkeypatch.setattr(last_used, "_next_flush", float("inf"))


def ask(**environ: Any) -> Any:
    """Request the usage with these headers, as a WSGI server passes them."""
    return Client(raise_request_exception=False).get("/usage", **environ)


def plain(response: Any) -> dict[str, Any]:
    return {name: value for name, value in response.json().items() if name != "request_id"}


# --- Valid keys -----------------------------------------------------------------------------------


def test_a_key_authenticates_by_either_header(alice: Caller) -> None:
    assert ask(HTTP_AUTHORIZATION=f"Bearer {alice.secret}").status_code == 200
    assert ask(HTTP_AUTHORIZATION=f"bEaReR   {alice.secret}").status_code == 200
    assert ask(HTTP_X_API_KEY=alice.secret).status_code == 200
    assert ask(HTTP_X_API_KEY=f" {alice.secret} ").status_code == 200


def test_both_headers_show_the_same_account(alice: Caller, charlie: Caller) -> None:
    by_bearer = ask(HTTP_AUTHORIZATION=f"Bearer {alice.secret}").json()

    assert by_bearer == ask(HTTP_X_API_KEY=alice.secret).json()


def test_the_authorization_header_wins(alice: Caller) -> None:
    response = ask(HTTP_AUTHORIZATION="Bearer wrong", HTTP_X_API_KEY=alice.secret)

    assert response.status_code == 401


def test_a_key_is_valid_until_it_expires(alice: Caller) -> None:
    _key, secret = keys.issue(alice.account, name="short", expires_in=timedelta(minutes=1))

    assert ask(HTTP_X_API_KEY=secret).status_code == 200


# --- Rejected credentials -------------------------------------------------------------------------

GOOD_LOOKING = "olg_" + "0" * 64

BAD = {
    "wrong": GOOD_LOOKING,
    "empty": "",
    "other prefix": "sk-" + "0" * 64,
    "no prefix": "0" * 64,
    "one short": GOOD_LOOKING[:-1],
    "one long": GOOD_LOOKING + "0",
    "upper case": GOOD_LOOKING.upper(),
    "8 KB": "olg_" + "a" * 8192,
    "NUL": "olg_\x00" + "0" * 63,
    "quotes": f'"{GOOD_LOOKING}"',
    "sql": "olg_' OR 1=1 --",
    "newline": "olg_\n" + "0" * 63,
    "not ASCII": "olg_" + "é" * 64,
    "not UTF-8": "olg_\xff\xfe\x80",
    "superscript digits": "olg_" + "\xb2" * 64,
    "comma list": f"{GOOD_LOOKING},{GOOD_LOOKING}",
    "two headers": f"{GOOD_LOOKING}, Bearer {GOOD_LOOKING}",
    "two words": f"{GOOD_LOOKING} {GOOD_LOOKING}",
    "punctuation": "%00%0a../../;",
}


@pytest.fixture
def refusal(db: None) -> dict[str, Any]:
    """The body of a 401 for an invalid key."""
    return plain(ask(HTTP_X_API_KEY="wrong"))


@pytest.mark.parametrize("header", ["HTTP_AUTHORIZATION", "HTTP_X_API_KEY"])
@pytest.mark.parametrize("secret", BAD.values(), ids=BAD)
def test_every_invalid_key_gets_the_same_401(
    refusal: dict[str, Any], header: str, secret: str
) -> None:
    with CaptureQueriesContext(
        connection,
    ) as queries:
        response = ask(**{header: f"Bearer {secret}" if header == "HTTP_AUTHORIZATION" else secret})

    assert (response.status_code, response["WWW-Authenticate"]) == (401, "Bearer")
    assert plain(response) == refusal and response["x-request-id"] == response.json()["request_id"]
    assert len(queries) <= 1


@pytest.mark.parametrize(
    "header",
    ["Basic YTpi", "Token x", "Bearer", "bearer:x", "\xff", "Bearer a b c", "\x00", "Negotiate"],
)
def test_every_unknown_scheme_gets_a_401_without_a_query(
    refusal: dict[str, Any], header: str
) -> None:
    with CaptureQueriesContext(connection) as queries:
        response = ask(HTTP_AUTHORIZATION=header)

    assert response.status_code == 401 and plain(response) == refusal
    assert len(queries) == 0


@pytest.mark.parametrize("environ", [{}, {"HTTP_AUTHORIZATION": ""}, {"HTTP_AUTHORIZATION": "  "}])
def test_a_request_without_a_key_gets_a_401_that_says_how_to_send_one(
    db: None, environ: dict[str, str]
) -> None:
    with CaptureQueriesContext(connection) as queries:
        response = ask(**environ)

    assert (response.status_code, response.json()["code"]) == (401, "invalid_api_key")
    assert "Authorization: Bearer" in response.json()["error"] and len(queries) == 0


def expire(key: ApiKey) -> None:
    ApiKey.objects.filter(pk=key.pk).update(expiry=timezone.now())


def revoke(key: ApiKey) -> None:
    assert keys.revoke(key.pk)


@pytest.mark.parametrize(("end", "word"), [(expire, "expired"), (revoke, "was revoked")])
def test_an_ended_key_is_told_when_it_ended(alice: Caller, end: Any, word: str) -> None:
    end(alice.key)
    with CaptureQueriesContext(connection) as queries:
        response = alice.get("/usage")

    ended = f"ends in {alice.key.last_four}, {word} on {timezone.now():%Y-%m-%d}."
    assert (response.status_code, response.json()["code"]) == (401, "invalid_api_key")
    assert ended in response.json()["error"] and response.content.isascii()
    assert len(queries) == 1


def test_every_message_about_a_key_is_ascii(db: None) -> None:
    for environ in ({}, {"HTTP_X_API_KEY": "wrong"}, {"HTTP_AUTHORIZATION": "Token x"}):
        assert "\\u" not in ask(**environ).content.decode()


def leave(key: ApiKey) -> None:
    Membership.objects.filter(user_id=key.user_id).delete()


def lock_out(key: ApiKey) -> None:
    User.objects.filter(pk=key.user_id).update(is_active=False)


@pytest.mark.parametrize("go", [leave, lock_out])
def test_a_key_stays_valid_when_its_user_leaves_the_account(
    alice: Caller, bob: Caller, go: Any
) -> None:
    go(bob.key)

    assert bob.get("/usage").status_code == 200
    assert keys.usable([bob.key.pk], timezone.now()) == {bob.key.pk}


def test_a_key_of_a_suspended_account_gets_a_401_with_the_reason(
    alice: Caller, bob: Caller, charlie: Caller
) -> None:
    Account.objects.filter(pk=alice.account.pk).update(status="suspended")

    for caller in (alice, bob):
        response = caller.get("/usage")
        assert response.status_code == 401 and "suspended" in response.json()["error"]
    assert charlie.get("/usage").status_code == 200


def test_revoking_a_key_leaves_other_keys_valid(alice: Caller, bob: Caller) -> None:
    keys.revoke(bob.key.pk)

    assert (bob.get("/usage").status_code, alice.get("/usage").status_code) == (401, 200)


def test_an_admin_session_does_not_authenticate_at_the_api(alice: Caller) -> None:
    client = Client(raise_request_exception=False)
    client.force_login(User.objects.create_superuser("root"))

    assert client.get("/usage").status_code == 401


LATIN = st.text(st.characters(max_codepoint=255), max_size=80)


@examples(
    max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None
)
@given(header=st.one_of(LATIN, LATIN.map("Bearer {}".format), LATIN.map("Bearer olg_{}".format)))
def test_no_authentication_header_causes_a_500(db: None, header: str) -> None:
    assert ask(HTTP_AUTHORIZATION=header).status_code == 401
    assert ask(HTTP_X_API_KEY=header).status_code == 401


# --- One query ------------------------------------------------------------------------------------


def add_keys(caller: Caller, count: int) -> None:
    """Give the caller's user more keys, without hashing each."""
    rows = [
        ApiKey(
            digest=f"{n:0128}",
            token_key="olg_",
            user=caller.key.user,
            account=caller.account,
            name="k",
        )
        for n in range(count)
    ]
    ApiKey.objects.bulk_create(rows)


@pytest.mark.parametrize("count", [10, 1000])
def test_authentication_takes_one_query_however_many_keys_exist(
    alice: Caller, ollama: FakeOllama, count: int
) -> None:
    add_keys(alice, count)
    with CaptureQueriesContext(connection) as queries:
        assert alice.get("/api/version").status_code == 200

    assert len(queries) == 1 and "accounts_apikey" in queries[0]["sql"]


def test_a_key_is_found_by_the_index_on_its_digest(alice: Caller) -> None:
    add_keys(alice, 1000)
    with connection.cursor() as cursor:
        if connection.vendor == "postgresql":
            cursor.execute("ANALYZE accounts_apikey")
    plan = ApiKey.objects.filter(digest=hash_token(alice.secret)).order_by().explain().lower()

    assert "index" in plan and "digest" in plan
    assert "seq scan" not in plan and "scan accounts_apikey" not in plan


def test_the_secret_is_not_stored_in_the_row(alice: Caller) -> None:
    row = ApiKey.objects.filter(pk=alice.key.pk).values().get()

    assert alice.secret not in str(row) and alice.secret[10:40] not in str(row)
    assert row["last_four"] == alice.secret[-4:]


# --- Scopes and models ----------------------------------------------------------------------------

NEEDS = {
    "infer": [
        ("get", "/models"),
        ("get", "/api/tags"),
        ("get", "/api/ps"),
        ("get", "/api/version"),
    ],
    "usage": [("get", "/usage"), ("get", "/usage/history")],
    "models": [("post", "/models/pull"), ("post", "/api/pull"), ("delete", "/api/delete")],
}
NEEDS["infer"] += [("post", f"/{name}") for name in ("generate", "chat", "embedding", "api/show")]
NEEDS["infer"] += [("post", f"/api/{name}") for name in ("generate", "chat", "embed", "embeddings")]
NEEDS["models"] += [("delete", "/models/llama3")]


@pytest.mark.parametrize("scope", NEEDS)
def test_a_key_without_the_scope_is_rejected(alice: Caller, ollama: FakeOllama, scope: str) -> None:
    others = [other for other in NEEDS if other != scope]
    key, secret = keys.issue(alice.account, name="narrow", scopes=others)
    narrow = Caller(key, secret)

    for method, path in NEEDS[scope]:
        response = getattr(narrow, method)(path)
        assert (response.status_code, response.json()["code"]) == (403, "forbidden")
    assert ollama.requests == []


def test_a_key_without_scopes_is_rejected_everywhere(alice: Caller, ollama: FakeOllama) -> None:
    key, secret = keys.issue(alice.account, name="none", scopes=[])
    responses = [getattr(Caller(key, secret), m)(p) for all_ in NEEDS.values() for m, p in all_]

    assert {response.status_code for response in responses} == {403} and ollama.requests == []


ASKED_FOR_MISTRAL = {
    "as it is": b'{"model": "mistral", "prompt": "hi"}',
    "with tag": b'{"model": "mistral:latest", "prompt": "hi"}',
    "upper case": b'{"model": "MISTRAL", "prompt": "hi"}',
    "in full": b'{"model": "registry.ollama.ai/library/mistral", "prompt": "hi"}',
    "blanks": b'{"model": " mistral ", "prompt": "hi"}',
    "local": b'{"model": "mistral:local", "prompt": "hi"}',
    "by name": b'{"name": "mistral", "prompt": "hi"}',
    "upper-case key": b'{"model": "llama3", "MODEL": "mistral", "prompt": "hi"}',
    "only an upper-case key": b'{"Model": "mistral", "prompt": "hi"}',
    "duplicate key": b'{"model": "llama3", "model": "mistral", "prompt": "hi"}',
    "empty model and a name": b'{"model": "", "name": "mistral", "prompt": "hi"}',
    "list": b'{"model": ["llama3", "mistral"], "prompt": "hi"}',
}


@pytest.fixture
def narrow(alice: Caller) -> Caller:
    """A key that can use only llama3, in an unusual spelling."""
    key, secret = keys.issue(alice.account, name="narrow", allowed_models=["Library/LLAMA3"])
    return Caller(key, secret)


@pytest.mark.usefixtures("priced")
@pytest.mark.parametrize("path", ["/generate", "/api/generate"])
@pytest.mark.parametrize("body", ASKED_FOR_MISTRAL.values(), ids=ASKED_FOR_MISTRAL)
def test_a_key_cannot_use_another_model_by_any_spelling(
    narrow: Caller, ollama: FakeOllama, path: str, body: bytes
) -> None:
    assert narrow.post(path, body).status_code in (400, 403)
    assert ollama.requests == [] and not Hold.objects.exists()


@pytest.mark.usefixtures("priced")
@pytest.mark.parametrize("spelled", ["llama3", "LLAMA3:latest", "library/llama3", "llama3:local"])
def test_a_key_can_use_its_model_by_every_spelling(
    narrow: Caller, ollama: FakeOllama, spelled: str
) -> None:
    assert narrow.post("/generate", model=spelled, prompt="hi").status_code == 200


@pytest.mark.usefixtures("priced")
@pytest.mark.parametrize("allowed", [["not a name"], ["gpt-oss:20b-cloud"], ["", "a/b/c/d"]])
def test_a_key_for_invalid_model_names_can_use_no_model(
    alice: Caller, ollama: FakeOllama, allowed: list[str]
) -> None:
    key, secret = keys.issue(alice.account, name="typo", allowed_models=allowed)
    response = Caller(key, secret).post("/generate", model="llama3", prompt="hi")

    assert response.status_code == 403 and ollama.requests == []
    assert Caller(key, secret).get("/models").json()["models"] == []
