"""Malformed and oversized requests, directly and through nginx. Continues test_transport.py."""

import contextlib
import re
from collections import Counter

import pytest

from billing.models import Hold, TokenUsage
from tests.faults.conftest import BOTH_WAYS, RunningGateway, nothing_happened
from tests.harness.urls import paths

pytestmark = BOTH_WAYS

# --- Smuggling ----------------------------------------------------------------------------------

INNER = b"GET /usage HTTP/1.1\r\nHost: localhost\r\n\r\n"
LENGTH = str(len(INNER)).encode()
CHUNKED_INNER = b"0\r\n\r\n" + INNER

SMUGGLED = {
    "length and chunks": (b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", CHUNKED_INNER),
    "two lengths": (b"Content-Length: 0\r\nContent-Length: N\r\n", INNER),
    "lengths in a list": (b"Content-Length: 0, N\r\n", INNER),
    "a signed length": (b"Content-Length: +N\r\n", INNER),
    "identity": (b"Transfer-Encoding: identity\r\nContent-Length: N\r\n", INNER),
    "xchunked": (b"Transfer-Encoding: xchunked\r\n", CHUNKED_INNER),
    "chunked twice": (b"Transfer-Encoding: chunked, chunked\r\n", CHUNKED_INNER),
    "chunked, then identity": (
        b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n",
        CHUNKED_INNER,
    ),
    "space before colon": (b"Transfer-Encoding : chunked\r\nContent-Length: N\r\n", INNER),
    "a folded header": (b"X: a\r\n Transfer-Encoding: chunked\r\nContent-Length: N\r\n", INNER),
    "bare LF": (b"X: a\nTransfer-Encoding: chunked\r\nContent-Length: N\r\n", INNER),
    "bare CR": (b"X: a\rTransfer-Encoding: chunked\r\nContent-Length: N\r\n", INNER),
    "NUL": (b"X: a\x00b\r\nContent-Length: N\r\n", INNER),
    "a negative chunk": (b"Transfer-Encoding: chunked\r\n", b"-1\r\n\r\n" + INNER),
    "a chunk size with 0x": (b"Transfer-Encoding: chunked\r\n", b"0x0\r\n\r\n" + INNER),
}


@pytest.mark.parametrize(("header", "body"), SMUGGLED.values(), ids=SMUGGLED)
def test_a_request_with_a_false_length_is_the_last_of_its_connection(
    gateway: RunningGateway, key: str, header: bytes, body: bytes
) -> None:
    """A second response would be one to `INNER`, for which another customer would be charged."""
    start = f"POST /api/generate HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {key}\r\n"

    answers = everything(gateway, start.encode() + header.replace(b"N", LENGTH) + b"\r\n" + body)

    assert statuses(answers) in ([400], [501]) and nothing_happened(gateway)


def test_headers_with_underscores_are_ignored(gateway: RunningGateway, key: str) -> None:
    """The request then has neither a length nor chunks, and what follows is not a request."""
    start = f"POST /api/generate HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {key}\r\n"
    odd = b"Content_Length: 0\r\nTransfer_Encoding: chunked\r\n\r\n"

    answers = everything(gateway, start.encode() + odd + CHUNKED_INNER)

    assert statuses(answers) == [411, 400] and nothing_happened(gateway)


def statuses(answers: bytes) -> list[int]:
    return [int(status) for status in re.findall(rb"HTTP/1\.1 (\d+) ", answers)]


def everything(gateway: RunningGateway, sent: bytes) -> bytes:
    """Send bytes; return everything that comes back until the server closes, which it must do."""
    found = b""
    with gateway.client(timeout=4) as client:
        # It may refuse what is too long before all of it is sent.
        with contextlib.suppress(ConnectionError):
            client.send(sent)
        with contextlib.suppress(ConnectionError):
            while piece := client.sock.recv(65_536):
                found += piece
    return found


HOSTS = {
    "two": b"GET /usage HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n",
    "foreign": b"GET /usage HTTP/1.1\r\nHost: evil.example\r\n",
    "a question mark": b"GET /usage HTTP/1.1\r\nHost: localhost?x=\r\n",
    "a hash": b"GET /usage HTTP/1.1\r\nHost: localhost#\r\n",
    "a slash": b"GET /usage HTTP/1.1\r\nHost: localhost/admin/\r\n",
    "somebody": b"GET /usage HTTP/1.1\r\nHost: localhost@evil.example\r\n",
    "blank": b"GET /usage HTTP/1.1\r\nHost: local host\r\n",
    "foreign in the target": b"GET http://evil.example/usage HTTP/1.1\r\nHost: evil.example\r\n",
}


@pytest.mark.parametrize("head", HOSTS.values(), ids=HOSTS)
def test_a_host_that_is_not_ours_is_refused(gateway: RunningGateway, key: str, head: bytes) -> None:
    assert statuses(everything(gateway, head + last_header(key))) == [400]


def last_header(key: str) -> bytes:
    return f"Connection: close\r\nAuthorization: Bearer {key}\r\n\r\n".encode()


# Of two host names the Host header's counts. nginx passes it on unchanged.
TARGETS = {
    "foreign": (b"GET http://evil.example/usage HTTP/1.1\r\nHost: localhost\r\n", True),
    "ours": (b"GET http://localhost/usage HTTP/1.1\r\nHost: evil.example\r\n", False),
}


@pytest.mark.parametrize(("head", "header_is_ours"), TARGETS.values(), ids=TARGETS)
def test_an_absolute_url_as_the_target_bypasses_nothing(
    gateway: RunningGateway, key: str, head: bytes, header_is_ours: bool
) -> None:
    assert statuses(everything(gateway, head + last_header(key))) == [
        200 if header_is_ours else 400
    ]
    without = everything(gateway, head + b"Connection: close\r\n\r\n")
    assert statuses(without) == [401 if header_is_ours else 400] and b"budgets" not in without


def test_forwarded_headers_of_a_client_are_not_trusted(gateway: RunningGateway, key: str) -> None:
    claims = {
        "X-Forwarded-For": "6.6.6.6",
        "X_Forwarded_For": "6.6.6.6",
        "X-Real-IP": "6.6.6.6",
        "Forwarded": "for=6.6.6.6;host=evil.example",
        "X-Forwarded-Host": "evil.example",
        "X-Forwarded-Proto": "https",
    }

    with gateway.client() as client:
        client.get("/usage", key=key, headers=dict(claims))
        assert client.read_head().status == 200
        assert b"evil" not in client.read_all()

    assert "6.6.6.6" not in gateway.server.log() + (gateway.nginx.log() if gateway.nginx else "")


# --- Other methods and long lines -----------------------------------------------------------------

# Requests to the model server for a listing, also for HEAD.
LISTINGS = {("GET", "/api/tags"), ("GET", "/api/ps"), ("GET", "/api/version")}


@pytest.mark.parametrize("method", ["OPTIONS", "TRACE", "PATCH", "CONNECT", "PUT", "FOO", "HEAD"])
def test_no_other_method_does_anything_on_any_route(
    gateway: RunningGateway, key: str, method: str
) -> None:
    found: Counter[int] = Counter()
    for path in sorted(set(paths())):
        with gateway.client() as client:
            client.request(method, path, b"{}" if method != "HEAD" else b"", key=key)
            found[client.read_head().status] += 1

    # 302: to the back-office's login.
    allowed = {302, 403, 404, 405} | ({200} if method in ("HEAD", "OPTIONS") else set())
    assert set(found) <= allowed and found.total() > 90
    asked = {(each.method, each.path) for each in gateway.ollama.requests}
    assert asked <= (LISTINGS if method == "HEAD" else set())
    assert not Hold.objects.exists() and not TokenUsage.objects.exists()


# The gateway's status, and nginx's.
LONG = {
    "a header of 8,191 bytes": ("/usage", "X: " + "y" * 8188 + "\r\n", 431, 400),
    "a header of 40,000 bytes": ("/usage", "X: " + "y" * 40_000 + "\r\n", 431, 400),
    "101 headers": ("/usage", "".join(f"X-{n}: y\r\n" for n in range(101)), 431, 431),
    "a line of 4,095 bytes": ("/" + "x" * 4081, "", 414, 414),
    "a line of a megabyte": ("/" + "x" * 1_000_000, "", 414, 414),
}


@pytest.mark.parametrize(("path", "header", "direct", "nginx"), LONG.values(), ids=LONG)
def test_oversized_heads_are_refused(
    gateway: RunningGateway, key: str, path: str, header: str, direct: int, nginx: int
) -> None:
    head = f"GET {path} HTTP/1.1\r\nHost: localhost\r\n{header}".encode()

    answers = everything(gateway, head + last_header(key))

    assert statuses(answers) == [nginx if gateway.nginx else direct]
