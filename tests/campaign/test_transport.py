"""Clients that leave, lie and break the rules of HTTP, straight to the gateway and through nginx.

The numbers B1 to B25 are those of the promises page. B7 to B11 are in test_slow_clients.py.
B4, B14 and B23 name nothing.
"""

import contextlib
import json
import time
from collections.abc import Iterator
from typing import Any

import pytest

from billing.models import Hold, TokenUsage
from tests.campaign.conftest import (
    House,
    Seen,
    ask,
    books_balance,
    figure,
    open_files,
    percentile,
    read,
    resident_mb,
    set_right,
    started,
    the_row,
    ways,
)
from tests.conftest import new_caller, set_price
from tests.fakes.ollama import Received
from tests.fakes.script import Reset, Stall, tokens
from tests.flow.conftest import eventually
from tests.servers.client import BROKEN

GENERATE = "/api/generate"
ASKED = {"model": "llama3", "prompt": "hello there"}
BODY = json.dumps(ASKED).encode()
PROMISED_SECONDS = 1.0


@pytest.fixture(scope="module", params=ways())
def running(request: Any, django_db_setup: None, django_db_blocker: Any) -> Iterator[House]:
    with started(behind_nginx=request.param) as house:
        yield house


@pytest.fixture(scope="module", params=ways())
def running_small(request: Any, django_db_setup: None, django_db_blocker: Any) -> Iterator[House]:
    """A gateway with one process of sixteen threads."""
    with started(request.param, GATEWAY_WORKERS="1", GATEWAY_THREADS="16") as house:
        yield house


@pytest.fixture
def small(running_small: House, transactional_db: None) -> Iterator[House]:
    set_right(running_small)
    yield running_small
    set_right(running_small)
    books_balance()


@pytest.fixture
def key(transactional_db: None) -> str:
    set_price("llama3", "0.002", "0.004")
    return new_caller("Alice").secret


def nothing_happened(house: House) -> bool:
    return house.ollama.requests == [] and not Hold.objects.exists()


# --- Leaving ------------------------------------------------------------------------------------


def leave(house: House, key: str, *, lines: int = 0, stream: bool = True) -> tuple[Received, float]:
    """Ask, read some lines, leave; return what the model server saw and how late it saw it."""
    before = len(house.ollama.requests)
    with house.client() as client:
        client.post(GENERATE, {**ASKED, "stream": stream}, key=key)
        asked = house.ollama.wait_for(before + 1)[-1]
        if lines:
            client.read_head()
        for _ in range(lines):
            assert client.read_line()
        time.sleep(0.02)
        left_at = time.monotonic()
    assert asked.left.wait(PROMISED_SECONDS * 2), "the model server still works for nobody"
    assert asked.left_at is not None
    return asked, asked.left_at - left_at


@pytest.mark.parametrize("lines", range(1, 6))
def test_b1_who_leaves_after_some_lines_pays_for_them(house: House, key: str, lines: int) -> None:
    house.ollama.answer(GENERATE, tokens(["x"] * 200, pause=0.02))

    asked, late = leave(house, key, lines=lines)

    assert late < PROMISED_SECONDS
    row = the_row()
    assert (row.outcome, row.billed) == ("client_left", True)
    assert lines <= row.completion_tokens <= asked.lines_sent


@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
def test_b2_b6_who_leaves_before_the_first_line_pays_nothing(
    house: House, key: str, stream: bool
) -> None:
    house.ollama.answer(GENERATE, Stall())

    _, late = leave(house, key, stream=stream)

    assert late < PROMISED_SECONDS
    assert (the_row().outcome, the_row().billed) == ("client_left", False)


def test_b5_a_line_every_two_seconds_hides_nobody_who_leaves(house: House, key: str) -> None:
    house.ollama.answer(GENERATE, tokens("abc", pause=1.8))

    _, late = leave(house, key, lines=1)

    assert late < PROMISED_SECONDS and the_row().completion_tokens == 1


def test_b6_who_leaves_a_whole_answer_half_written_pays_for_that_half(
    house: House, key: str
) -> None:
    house.ollama.answer(GENERATE, tokens("ab", done=False), Stall())

    _, late = leave(house, key, stream=False)

    assert late < PROMISED_SECONDS
    # It may leave before both lines were read; what was not read is not billed.
    assert the_row().outcome == "client_left" and the_row().completion_tokens <= 2


@pytest.mark.parametrize("lines", [0, 2], ids=["before the first line", "in mid-stream"])
def test_leaving_is_seen_within_a_second_fifty_times(house: House, key: str, lines: int) -> None:
    house.ollama.answer(GENERATE, tokens("ab", done=False) if lines else [], Stall())

    late = [leave(house, key, lines=lines)[1] for _ in range(50)]

    p50, p99 = percentile(late, 50), percentile(late, 99)
    way = "through nginx" if house.nginx else "direct"
    phase = "in mid-stream" if lines else "before the first line"
    figure(f"leave to upstream closed, {phase}, {way}: p50 {p50:.3f} s, p99 {p99:.3f} s")
    assert p99 < PROMISED_SECONDS
    eventually(lambda: TokenUsage.objects.filter(outcome="client_left").count() == 50)


def test_b3_who_leaves_the_queue_never_reaches_the_model_server(small: House, key: str) -> None:
    small.ollama.answer(GENERATE, Stall())
    served = [small.client() for _ in range(16)]
    for client in served:
        client.post(GENERATE, ASKED, key=key)
    small.ollama.wait_for(16)
    queued = [small.client() for _ in range(4)]
    for client in queued:
        client.post(GENERATE, ASKED, key=key)
    time.sleep(0.2)

    for client in [*queued, *served]:
        client.close()

    eventually(lambda: Hold.objects.count() >= 16 and not small.ollama.in_flight)
    time.sleep(0.5)
    assert len(small.ollama.requests) == 16
    assert not TokenUsage.objects.filter(billed=True).exists()


def test_b25_a_thousand_readers_on_sixteen_threads_leave_nothing_behind(
    small: House, key: str
) -> None:
    small.ollama.answer(GENERATE, tokens("a", done=False), Stall())
    [pid] = small.server.worker_pids()
    before = open_files(pid)

    crowd = [small.client(timeout=5) for _ in range(1000)]
    for client in crowd:
        # nginx lets 128 of one address in, and tells the rest.
        with contextlib.suppress(*BROKEN):
            client.post(GENERATE, {**ASKED, "stream": True}, key=key)
    small.ollama.wait_for(16)
    time.sleep(0.5)
    most = small.ollama.max_in_flight
    for client in crowd:
        client.close()

    eventually(lambda: open_files(pid) <= before + 10, seconds=30)
    eventually(lambda: ask_quietly(small, key), seconds=20)
    assert most == 16


def ask_quietly(house: House, key: str) -> bool:
    house.ollama.answer(GENERATE, tokens("ab"))
    return ask(house, key).looks_complete


# --- Bodies -------------------------------------------------------------------------------------

HEAD = "POST /api/generate HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {}\r\n{}\r\n"


@pytest.mark.parametrize(
    ("header", "piece", "end"),
    [
        ("Content-Length: 104857600\r\n", b" " * 65_536, b""),
        ("Transfer-Encoding: chunked\r\n", b"10000\r\n" + b" " * 65_536 + b"\r\n", b"0\r\n\r\n"),
    ],
    ids=["with its length", "in chunks"],
)
def test_b12_a_body_of_100_mb_is_refused_and_not_kept(
    house: House, key: str, header: str, piece: bytes, end: bytes
) -> None:
    before = max(map(resident_mb, house.server.worker_pids()))

    with house.client(timeout=20) as client:
        client.send(HEAD.format(key, header).encode())
        # It may be refused long before all of it is sent.
        with contextlib.suppress(OSError):
            for _ in range(1600):
                client.send(piece)
            client.send(end)
        assert client.read_head().status == 413
        assert client.read_json()["code"] == "request_too_large"

    after = max(map(resident_mb, house.server.worker_pids()))
    figure(f"a body of 100 MB: {after - before:+.0f} MB resident")
    assert after - before < 110 and nothing_happened(house)


def test_b13_a_body_shorter_than_announced_leaves_nothing(house: House, key: str) -> None:
    with house.client() as client:
        client.send(HEAD.format(key, "Content-Length: 5000\r\n").encode() + BODY)
        client.sock.shutdown(1)
        with contextlib.suppress(*BROKEN):
            assert client.read_head().status == 400
    time.sleep(0.1)
    assert nothing_happened(house)


# --- Smuggling ----------------------------------------------------------------------------------

INNER = b"GET /usage HTTP/1.1\r\nHost: localhost\r\n\r\n"
CHUNKED_INNER = b"0\r\n\r\n" + INNER

SMUGGLED = {
    "length and chunks": (b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", CHUNKED_INNER),
    "two lengths": (b"Content-Length: 0\r\nContent-Length: 43\r\n", INNER),
    "lengths in a list": (b"Content-Length: 0, 43\r\n", INNER),
    "a signed length": (b"Content-Length: +43\r\n", INNER),
    "identity": (b"Transfer-Encoding: identity\r\nContent-Length: 43\r\n", INNER),
    "xchunked": (b"Transfer-Encoding: xchunked\r\n", CHUNKED_INNER),
    "chunked twice": (b"Transfer-Encoding: chunked, chunked\r\n", CHUNKED_INNER),
    "chunked, then identity": (
        b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n",
        CHUNKED_INNER,
    ),
    "space before colon": (b"Transfer-Encoding : chunked\r\nContent-Length: 43\r\n", INNER),
    "a folded header": (b"X: a\r\n Transfer-Encoding: chunked\r\nContent-Length: 43\r\n", INNER),
    "bare LF": (b"X: a\nTransfer-Encoding: chunked\r\nContent-Length: 43\r\n", INNER),
    "bare CR": (b"X: a\rTransfer-Encoding: chunked\r\nContent-Length: 43\r\n", INNER),
    "NUL": (b"X: a\x00b\r\nContent-Length: 43\r\n", INNER),
    "underscores": (b"Content_Length: 0\r\nTransfer_Encoding: chunked\r\n", CHUNKED_INNER),
    "a negative chunk": (b"Transfer-Encoding: chunked\r\n", b"-1\r\n\r\n" + INNER),
    "a chunk size with 0x": (b"Transfer-Encoding: chunked\r\n", b"0x0\r\n\r\n" + INNER),
}


@pytest.mark.parametrize(("header", "body"), SMUGGLED.values(), ids=SMUGGLED)
def test_b15_b16_nothing_is_read_out_of_a_request_that_lies_about_its_length(
    house: House, key: str, header: bytes, body: bytes
) -> None:
    """One answer at most has the caller's identity: a second would be an answer to `INNER`."""
    start = f"POST /api/generate HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {key}\r\n"

    answers = everything(house, start.encode() + header + b"\r\n" + body)

    statuses = [int(part[1:4]) for part in answers.split(b"HTTP/1.1")[1:]]
    assert not statuses or 400 <= statuses[0] < 502
    # `INNER` carries no key: answered as a request of its own it is refused, never served.
    assert statuses[1:] in ([], [400], [401]) and nothing_happened(house)
    assert b"balance" not in answers and b"billed_amount" not in answers


def everything(house: House, sent: bytes) -> bytes:
    """Send bytes; return all that comes back until the server closes or says no more."""
    found = b""
    with house.client(timeout=3) as client:
        client.send(sent)
        client.sock.settimeout(0.7)
        with contextlib.suppress(OSError):
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
def test_b17_a_host_that_is_not_ours_is_refused(house: House, key: str, head: bytes) -> None:
    answer = everything(house, head + f"Authorization: Bearer {key}\r\n\r\n".encode())

    assert answer.startswith(b"HTTP/1.1 40"), answer[:200]


def test_b18_nobody_believes_what_a_client_says_of_its_address(house: House, key: str) -> None:
    claims = {
        "X-Forwarded-For": "6.6.6.6",
        "X_Forwarded_For": "6.6.6.6",
        "X-Real-IP": "6.6.6.6",
        "Forwarded": "for=6.6.6.6;host=evil.example",
        "X-Forwarded-Host": "evil.example",
        "X-Forwarded-Proto": "https",
    }

    with house.client() as client:
        client.get("/usage", key=key, headers=dict(claims))
        assert client.read_head().status == 200
        assert b"evil" not in client.read_all()

    assert "6.6.6.6" not in house.server.log() + (house.nginx.log() if house.nginx else "")


# --- Old, odd and impatient clients -------------------------------------------------------------


@pytest.mark.parametrize("broken", [False, True], ids=["whole", "broken"])
def test_b19_an_old_client_knows_the_end_by_the_last_line(
    house: House, key: str, broken: bool
) -> None:
    house.ollama.answer(GENERATE, tokens("ab", done=not broken), [Reset()] if broken else [])
    head = HEAD.format(key, f"Content-Length: {len(BODY)}\r\n").replace("HTTP/1.1", "HTTP/1.0")

    with house.client() as client:
        client.send(head.encode() + BODY)
        seen = read(client, time.monotonic())

    assert seen.looks_complete is not broken and "transfer-encoding" not in seen.headers
    assert not broken or seen.error["code"] == "upstream_broke"


@pytest.mark.parametrize("allowed", [True, False], ids=["with a key", "without"])
def test_b20_who_waits_for_a_100_is_told_to_go_on_or_refused(
    house: House, key: str, allowed: bool
) -> None:
    with house.client() as client:
        header = f"Content-Length: {len(BODY)}\r\nExpect: 100-continue\r\n"
        client.send(HEAD.format(key if allowed else "x", header).encode())
        first = client.read_head().status
        if first == 100:
            client.send(BODY)
            first = client.read_head().status
        assert first == (200 if allowed else 401)
        client.read_all()


def test_b21_a_stream_is_neither_compressed_nor_gathered(house: House, key: str) -> None:
    house.ollama.answer(GENERATE, tokens("abcdefgh", pause=0.1))
    gaps: list[float] = []

    with house.client() as client:
        client.post(GENERATE, ASKED, key=key, headers={"Accept-Encoding": "gzip, br"})
        assert "content-encoding" not in client.read_head().headers
        client.read_line()
        before = time.monotonic()
        while client.read_line():
            gaps.append(time.monotonic() - before - 0.1)
            before = time.monotonic()

    figure(f"a line is at most {max(gaps) * 1000:.0f} ms late")
    assert len(gaps) == 8 and max(gaps) < 0.25


PATHS = ["/generate", "/api/chat", "/v1/chat/completions", "/v1/messages", "/usage", "/models", "/"]


@pytest.mark.parametrize("method", ["OPTIONS", "TRACE", "PATCH", "CONNECT", "PUT", "FOO", "HEAD"])
def test_b22_no_other_method_does_anything(house: House, key: str, method: str) -> None:
    for path in PATHS:
        with house.client() as client:
            client.request(method, path, b"{}" if method != "HEAD" else b"", key=key)
            status = client.read_head().status
        allowed = (200,) if method == "HEAD" else (400, 403, 404, 405, 501)
        assert status in (*allowed, 405), path
    # A listing asks what there is to list.
    assert {asked.path for asked in house.ollama.requests} <= {"/api/tags"}
    assert not Hold.objects.exists()


LONG = {
    "a header of 8,191 bytes": ("/usage", "X: " + "y" * 8188 + "\r\n", (200, 400, 431)),
    "a header of 40,000 bytes": ("/usage", "X: " + "y" * 40_000 + "\r\n", (400, 431)),
    "101 headers": ("/usage", "".join(f"X-{n}: y\r\n" for n in range(101)), (431,)),
    "a line of 4,095 bytes": ("/" + "x" * 4095, "", (414,)),
    "a line of a megabyte": ("/" + "x" * 1_000_000, "", (400, 414)),
}


@pytest.mark.parametrize(("path", "header", "statuses"), LONG.values(), ids=LONG)
def test_b24_what_is_too_long_is_refused(
    house: House, key: str, path: str, header: str, statuses: tuple[int, ...]
) -> None:
    request = f"GET {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {key}\r\n{header}"

    with house.client() as client:
        with contextlib.suppress(OSError):
            client.send(request.encode() + b"\r\n")
        try:
            assert client.read_head().status in statuses
        except ConnectionError:
            assert len(request) > 100_000, "it was cut without a word"


def test_other_customers_are_served_after_all_this(house: House, key: str) -> None:
    seen: list[Seen] = [ask(house, key) for _ in range(5)]

    assert all(one.looks_complete for one in seen)
