"""A key opens the door, anything else is a plain 401; one query, however many keys there are."""

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
    """Keep "last used" of other tests from being written while a test counts queries."""
    monkeypatch.setattr(last_used, "_next_flush", float("inf"))


def ask(**environ: Any) -> Any:
    """Ask for the usage with these headers, as a server hands them over."""
    return Client(raise_request_exception=False).get("/usage", **environ)


def plain(answer: Any) -> dict[str, Any]:
    return {name: value for name, value in answer.json().items() if name != "request_id"}


# --- What opens the door --------------------------------------------------------------------------


def test_a_key_opens_the_door_by_either_header(alice: Caller) -> None:
    assert ask(HTTP_AUTHORIZATION=f"Bearer {alice.secret}").status_code == 200
    assert ask(HTTP_AUTHORIZATION=f"bEaReR   {alice.secret}").status_code == 200
    assert ask(HTTP_X_API_KEY=alice.secret).status_code == 200
    assert ask(HTTP_X_API_KEY=f" {alice.secret} ").status_code == 200


def test_both_headers_show_the_same_account(alice: Caller, charlie: Caller) -> None:
    by_bearer = ask(HTTP_AUTHORIZATION=f"Bearer {alice.secret}").json()

    assert by_bearer == ask(HTTP_X_API_KEY=alice.secret).json()


def test_the_authorization_header_wins(alice: Caller) -> None:
    answer = ask(HTTP_AUTHORIZATION="Bearer wrong", HTTP_X_API_KEY=alice.secret)

    assert answer.status_code == 401


def test_a_key_that_will_expire_is_good_until_then(alice: Caller) -> None:
    _key, secret = keys.issue(alice.account, name="short", expires_in=timedelta(minutes=1))

    assert ask(HTTP_X_API_KEY=secret).status_code == 200


# --- What does not --------------------------------------------------------------------------------

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
    """What everybody without a good key is told."""
    return plain(ask(HTTP_X_API_KEY="wrong"))


@pytest.mark.parametrize("header", ["HTTP_AUTHORIZATION", "HTTP_X_API_KEY"])
@pytest.mark.parametrize("secret", BAD.values(), ids=BAD)
def test_every_bad_key_is_the_same_plain_401(
    refusal: dict[str, Any], header: str, secret: str
) -> None:
    with CaptureQueriesContext(
        connection,
    ) as queries:
        answer = ask(**{header: f"Bearer {secret}" if header == "HTTP_AUTHORIZATION" else secret})

    assert (answer.status_code, answer["WWW-Authenticate"]) == (401, "Bearer")
    assert plain(answer) == refusal and answer["x-request-id"] == answer.json()["request_id"]
    assert len(queries) <= 1


@pytest.mark.parametrize(
    "header",
    ["Basic YTpi", "Token x", "Bearer", "bearer:x", "\xff", "Bearer a b c", "\x00", "Negotiate"],
)
def test_every_bad_scheme_is_a_401_without_a_query(refusal: dict[str, Any], header: str) -> None:
    with CaptureQueriesContext(connection) as queries:
        answer = ask(HTTP_AUTHORIZATION=header)

    assert answer.status_code == 401 and plain(answer) == refusal
    assert len(queries) == 0


@pytest.mark.parametrize("environ", [{}, {"HTTP_AUTHORIZATION": ""}, {"HTTP_AUTHORIZATION": "  "}])
def test_no_key_is_a_401_that_says_how_to_send_one(db: None, environ: dict[str, str]) -> None:
    with CaptureQueriesContext(connection) as queries:
        answer = ask(**environ)

    assert (answer.status_code, answer.json()["code"]) == (401, "invalid_api_key")
    assert "Authorization: Bearer" in answer.json()["error"] and len(queries) == 0


def expire(key: ApiKey) -> None:
    ApiKey.objects.filter(pk=key.pk).update(expiry=timezone.now())


def revoke(key: ApiKey) -> None:
    assert keys.revoke(key.pk)


@pytest.mark.parametrize(("end", "word"), [(expire, "expired"), (revoke, "was revoked")])
def test_a_key_that_was_good_is_told_when_it_ended(alice: Caller, end: Any, word: str) -> None:
    end(alice.key)
    with CaptureQueriesContext(connection) as queries:
        answer = alice.get("/usage")

    ended = f"ends in {alice.key.last_four}, {word} on {timezone.now():%Y-%m-%d}."
    assert (answer.status_code, answer.json()["code"]) == (401, "invalid_api_key")
    assert ended in answer.json()["error"] and answer.content.isascii()
    assert len(queries) == 1


def test_every_message_about_a_key_is_plain_ascii(db: None) -> None:
    for environ in ({}, {"HTTP_X_API_KEY": "wrong"}, {"HTTP_AUTHORIZATION": "Token x"}):
        assert "\\u" not in ask(**environ).content.decode()


def leave(key: ApiKey) -> None:
    Membership.objects.filter(user_id=key.user_id).delete()


def lock_out(key: ApiKey) -> None:
    User.objects.filter(pk=key.user_id).update(is_active=False)


@pytest.mark.parametrize("go", [leave, lock_out])
def test_a_key_belongs_to_its_account_and_outlives_who_it_was_issued_for(
    alice: Caller, bob: Caller, go: Any
) -> None:
    go(bob.key)

    assert bob.get("/usage").status_code == 200
    assert keys.usable([bob.key.pk], timezone.now()) == {bob.key.pk}


def test_a_suspended_account_is_told_so(alice: Caller, bob: Caller, charlie: Caller) -> None:
    Account.objects.filter(pk=alice.account.pk).update(status="suspended")

    for caller in (alice, bob):
        answer = caller.get("/usage")
        assert answer.status_code == 401 and "suspended" in answer.json()["error"]
    assert charlie.get("/usage").status_code == 200


def test_a_revoked_key_ends_alone(alice: Caller, bob: Caller) -> None:
    keys.revoke(bob.key.pk)

    assert (bob.get("/usage").status_code, alice.get("/usage").status_code) == (401, 200)


def test_a_session_opens_no_door_of_the_api(alice: Caller) -> None:
    client = Client(raise_request_exception=False)
    client.force_login(User.objects.create_superuser("root"))

    assert client.get("/usage").status_code == 401


LATIN = st.text(st.characters(max_codepoint=255), max_size=80)


@examples(
    max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None
)
@given(header=st.one_of(LATIN, LATIN.map("Bearer {}".format), LATIN.map("Bearer olg_{}".format)))
def test_no_header_does_worse_than_a_401(db: None, header: str) -> None:
    assert ask(HTTP_AUTHORIZATION=header).status_code == 401
    assert ask(HTTP_X_API_KEY=header).status_code == 401


# --- One query ------------------------------------------------------------------------------------


def add_keys(caller: Caller, count: int) -> None:
    """Give the caller's user this many more keys, without hashing each."""
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
def test_a_key_costs_one_query_among_many(alice: Caller, ollama: FakeOllama, count: int) -> None:
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


def test_the_secret_stands_nowhere_in_the_row(alice: Caller) -> None:
    row = ApiKey.objects.filter(pk=alice.key.pk).values().get()

    assert alice.secret not in str(row) and alice.secret[10:40] not in str(row)
    assert row["last_four"] == alice.secret[-4:]


# --- What a key may do ----------------------------------------------------------------------------

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
def test_a_key_without_the_scope_is_refused(alice: Caller, ollama: FakeOllama, scope: str) -> None:
    others = [other for other in NEEDS if other != scope]
    key, secret = keys.issue(alice.account, name="narrow", scopes=others)
    narrow = Caller(key, secret)

    for method, path in NEEDS[scope]:
        answer = getattr(narrow, method)(path)
        assert (answer.status_code, answer.json()["code"]) == (403, "forbidden")
    assert ollama.requests == []


def test_a_key_without_any_scope_may_nothing(alice: Caller, ollama: FakeOllama) -> None:
    key, secret = keys.issue(alice.account, name="none", scopes=[])
    answers = [getattr(Caller(key, secret), m)(p) for all_ in NEEDS.values() for m, p in all_]

    assert {answer.status_code for answer in answers} == {403} and ollama.requests == []


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
    """A key that may use llama3 only, spelled in an odd way."""
    key, secret = keys.issue(alice.account, name="narrow", allowed_models=["Library/LLAMA3"])
    return Caller(key, secret)


@pytest.mark.usefixtures("priced")
@pytest.mark.parametrize("path", ["/generate", "/api/generate"])
@pytest.mark.parametrize("body", ASKED_FOR_MISTRAL.values(), ids=ASKED_FOR_MISTRAL)
def test_a_key_cannot_talk_its_way_to_another_model(
    narrow: Caller, ollama: FakeOllama, path: str, body: bytes
) -> None:
    assert narrow.post(path, body).status_code in (400, 403)
    assert ollama.requests == [] and not Hold.objects.exists()


@pytest.mark.usefixtures("priced")
@pytest.mark.parametrize("spelled", ["llama3", "LLAMA3:latest", "library/llama3", "llama3:local"])
def test_a_key_may_use_its_model_by_every_spelling(
    narrow: Caller, ollama: FakeOllama, spelled: str
) -> None:
    assert narrow.post("/generate", model=spelled, prompt="hi").status_code == 200


@pytest.mark.usefixtures("priced")
@pytest.mark.parametrize("allowed", [["not a name"], ["gpt-oss:20b-cloud"], ["", "a/b/c/d"]])
def test_a_key_for_names_that_are_none_may_use_no_model(
    alice: Caller, ollama: FakeOllama, allowed: list[str]
) -> None:
    key, secret = keys.issue(alice.account, name="typo", allowed_models=allowed)
    answer = Caller(key, secret).post("/generate", model="llama3", prompt="hi")

    assert answer.status_code == 403 and ollama.requests == []
    assert Caller(key, secret).get("/models").json()["models"] == []
