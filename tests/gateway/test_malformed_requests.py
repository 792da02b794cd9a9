"""A malformed URL, method or header is a clean 4xx."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from django.test import Client

from billing.models import Hold
from tests.fakes.ollama import FakeOllama
from tests.harness.callers import Caller
from tests.harness.gateway import gateway_env
from tests.harness.urls import paths
from tests.servers.client import BROKEN, RawClient
from tests.servers.gunicorn import Gunicorn

PATHS = ["/generate", "/api/chat"]


def is_refused(answer: Any, *statuses: int) -> bool:
    """Tell whether an answer is an error of the client's, as every client of ours reads it."""
    body = json.loads(answer.content)
    return (
        answer.status_code in (statuses or (400,))
        and set(body) == {"error", "code", "request_id"}
        and all(isinstance(value, str) for value in body.values())
        and len(body["error"]) < 300
        and answer["x-request-id"] == body["request_id"]
    )


def nothing_happened(ollama: FakeOllama) -> bool:
    return ollama.requests == [] and not Hold.objects.exists()


# --- Addresses ------------------------------------------------------------------------------------

OPEN = {"/", "/healthz", "/readyz"}
ADMIN_LOGIN = {"/admin", "/admin/login/", "/admin/logout/", "/admin/jsi18n/"}


def test_the_walk_knows_the_paths() -> None:
    found = set(paths())

    assert {"/generate", "/api/chat", "/models/1", "/usage", "/admin/"} <= found | OPEN


@pytest.mark.django_db
@pytest.mark.parametrize("method", ["get", "post", "put", "patch", "delete", "head", "options"])
def test_no_address_is_open_to_somebody_without_a_key(ollama: FakeOllama, method: str) -> None:
    client = Client(enforce_csrf_checks=True, raise_request_exception=False)
    found = set(paths()) - OPEN - ADMIN_LOGIN
    statuses = {path: getattr(client, method)(path) for path in sorted(found)}

    for path, answer in statuses.items():
        to_login = answer.status_code == 302 and "/login" in answer["Location"]
        assert to_login or answer.status_code in (401, 403, 404, 405), path
    assert ollama.requests == []


FORBIDDEN = [
    "/api/create",
    "/api/push",
    "/api/copy",
    "/api/blobs/sha256:" + "0" * 64,
    "/api/me",
    "/api/signout",
    "/api/user/keys/x",
    "/api/status",
    "/api/experimental/web_search",
    "/api/experimental/web_fetch",
    "/api/experimental/model-recommendations",
    "/v1/audio/transcriptions",
    "/debug/pprof/heap",
    "/debug/vars",
]


def disguised(path: str) -> list[str]:
    last = path.rsplit("/", 1)[-1]
    return [
        path,
        path + "/",
        "/" + path,
        path.replace("/", "//"),
        path.upper(),
        "/api/chat/.." + path,
        "/api/../" + path,
        "/%2e%2e" + path,
        path.replace(last, f"%{ord(last[0]):02x}{last[1:]}"),
        path.replace("/api/", "/api%2f"),
        path + "%00",
        path + ";x=1",
        path + ".",
        path + "%20",
        "/models" + path.replace("/", "%2f"),
    ]


@pytest.mark.parametrize("path", FORBIDDEN)
def test_what_ollama_has_and_we_do_not_is_a_404_however_it_is_spelled(
    alice: Caller, ollama: FakeOllama, path: str
) -> None:
    for spelled in disguised(path):
        for method in ("GET", "POST", "DELETE", "HEAD"):
            answer = alice.client.generic(
                method, spelled, b'{"model": "llama3"}', headers=alice.headers
            )
            assert answer.status_code in (403, 404), spelled
            assert answer["Content-Type"] == "application/json"
    assert ollama.requests == []


@pytest.mark.usefixtures("priced")
@pytest.mark.parametrize(
    "path",
    [
        *("//generate", "/generate/", "/GENERATE", "/generate;x", "/generate.", "/./generate"),
        *("/api//chat", "//api/chat", "/API/chat", "/api/../api/chat", "/api/chat\x00", "generate"),
    ],
)
def test_an_address_has_one_spelling(alice: Caller, ollama: FakeOllama, path: str) -> None:
    body = b'{"model": "llama3", "prompt": "hi"}'
    answer = alice.client.generic("POST", "/", body, PATH_INFO=path, headers=alice.headers)

    assert is_refused(answer, 404) and nothing_happened(ollama)


# --- Under the real server ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small(django_db_setup: None) -> Iterator[Gunicorn]:
    """A gateway that takes bodies of 100 KB."""
    with FakeOllama() as fake:
        env = gateway_env(fake, MAX_BODY_BYTES="100000", GATEWAY_WORKERS="1", GATEWAY_THREADS="4")
        with Gunicorn(env) as server:
            yield server


HEAD = "POST /generate HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {}\r\n{}\r\n"
BODY = b'{"model": "nobody", "prompt": "hi"}'

ON_THE_WIRE = {
    "length too large": ("Content-Length: 900000\r\n", b"x" * 900_000, 413),
    "chunks too large": (
        "Transfer-Encoding: chunked\r\n",
        b"2710\r\n" + b"x" * 10_000 + b"\r\n",
        413,
    ),
    "chunks": ("Transfer-Encoding: chunked\r\n", b"%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY), 404),
    "no length": ("", b"", 411),
    "a charset that is none": (
        "Content-Type: a/b; charset=rot13\r\nContent-Length: 35\r\n",
        BODY,
        404,
    ),
    "length of zero": ("Content-Length: 0\r\n", b"", 400),
    "length that is no number": ("Content-Length: x\r\n", b"", 400),
    "two lengths": ("Content-Length: 35\r\nContent-Length: 36\r\n", BODY, 400),
    "length and chunks": ("Content-Length: 35\r\nTransfer-Encoding: chunked\r\n", BODY, 400),
    "bad chunk size": ("Transfer-Encoding: chunked\r\n", b"zz\r\n\r\n", 400),
    "space before colon": ("Content-Length : 35\r\n", BODY, 400),
    "folded header": ("X: a\r\n b\r\nContent-Length: 35\r\n", BODY, 400),
    "NUL in a header": ("X: a\x00b\r\nContent-Length: 35\r\n", BODY, 400),
}


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(("header", "body", "status"), ON_THE_WIRE.values(), ids=ON_THE_WIRE)
def test_a_request_that_breaks_the_rules_of_http_is_a_clean_4xx(
    small: Gunicorn, alice: Caller, header: str, body: bytes, status: int
) -> None:
    pieces = 20 if status == 413 and "chunked" in header else 1
    with RawClient(small.url) as client:
        client.send(HEAD.format(alice.secret, header).encode("latin-1") + body * pieces)
        client.send(b"0\r\n\r\n" if pieces > 1 else b"")
        assert client.read_head().status == status
    assert not Hold.objects.exists()


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("header", ["Content-Length: 900000\r\n", "Transfer-Encoding: chunked\r\n"])
def test_no_request_is_read_out_of_a_body_that_was_refused(
    small: Gunicorn, alice: Caller, header: str
) -> None:
    inner = b"zz\r\n\r\n" + b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n" * 10
    with RawClient(small.url, timeout=0.5) as client:
        client.send(HEAD.format(alice.secret, header).encode() + inner.ljust(900_000))
        assert client.read_head().status in (400, 413)
        client.read_all()
        with pytest.raises((*BROKEN, TimeoutError)):
            client.read_head()


@pytest.mark.django_db(transaction=True)
def test_a_body_shorter_than_announced_leaves_nothing_behind(
    small: Gunicorn, alice: Caller
) -> None:
    with RawClient(small.url) as client:
        head = HEAD.format(alice.secret, "Content-Length: 5000\r\n").encode()
        client.send(head + BODY)
        client.sock.shutdown(1)
        assert client.read_head().status == 400
    assert not Hold.objects.exists()
