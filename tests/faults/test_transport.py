"""Clients that disconnect, send too much or too little, or speak old HTTP; directly and through
nginx.

Slow clients are in test_slow_clients.py, malformed requests in test_malformed_requests.py.
"""

import contextlib
import json
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from billing.models import Hold, TokenUsage
from tests.fakes.ollama import Received
from tests.fakes.script import Reset, Stall, Wait, tokens
from tests.faults.conftest import (
    RunningGateway,
    Seen,
    ask,
    books_balance,
    figure,
    growing_less_than,
    is_error,
    nothing_happened,
    open_files,
    percentile,
    read,
    set_right,
    started,
    the_row,
    thread_count,
    ways,
)
from tests.harness.gateway import eventually
from tests.servers.client import BROKEN

GENERATE = "/api/generate"
ASKED = {"model": "llama3", "prompt": "hello there"}
BODY = json.dumps(ASKED).encode()
# Longer than promised, for a busy machine; `make promises` measures it.
NOTICED_SECONDS = 5.0


@pytest.fixture(scope="module", params=ways())
def running(
    request: Any, django_db_setup: None, django_db_blocker: Any
) -> Iterator[RunningGateway]:
    with started(behind_nginx=request.param) as gateway:
        yield gateway


@pytest.fixture(scope="module", params=ways())
def running_small(
    request: Any, django_db_setup: None, django_db_blocker: Any
) -> Iterator[RunningGateway]:
    """A gateway with one process of sixteen threads."""
    with started(request.param, GATEWAY_WORKERS="1", GATEWAY_THREADS="16") as gateway:
        yield gateway


@pytest.fixture
def small(running_small: RunningGateway, transactional_db: None) -> Iterator[RunningGateway]:
    set_right(running_small)
    yield running_small
    set_right(running_small)
    books_balance()


# --- Disconnects --------------------------------------------------------------------------------


def leave(
    gateway: RunningGateway, key: str, *, lines: int = 0, stream: bool = True
) -> tuple[Received, float]:
    """Send a request, read some lines, disconnect; return what the model server saw and when."""
    before = len(gateway.ollama.requests)
    with gateway.client() as client:
        client.post(GENERATE, {**ASKED, "stream": stream}, key=key)
        asked = gateway.ollama.wait_for(before + 1)[-1]
        if lines:
            client.read_head()
        for _ in range(lines):
            assert client.read_line()
        time.sleep(0.02)
        left_at = time.monotonic()
    assert asked.left.wait(NOTICED_SECONDS * 2), "the model server still works for nobody"
    assert asked.left_at is not None
    return asked, asked.left_at - left_at


@pytest.mark.parametrize("lines", range(1, 6))
def test_a_client_that_disconnects_after_some_lines_pays_for_them(
    gateway: RunningGateway, key: str, lines: int
) -> None:
    gateway.ollama.answer(GENERATE, tokens(["x"] * 200, pause=0.02))

    asked, late = leave(gateway, key, lines=lines)

    assert late < NOTICED_SECONDS
    row = the_row()
    assert (row.outcome, row.billed) == ("client_left", True)
    assert lines <= row.completion_tokens <= asked.lines_sent


@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
def test_a_client_that_disconnects_before_the_first_line_pays_nothing(
    gateway: RunningGateway, key: str, stream: bool
) -> None:
    gateway.ollama.answer(GENERATE, Stall())

    _, late = leave(gateway, key, stream=stream)

    assert late < NOTICED_SECONDS
    assert (the_row().outcome, the_row().billed) == ("client_left", False)


def test_a_disconnect_is_noticed_between_lines_two_seconds_apart(
    gateway: RunningGateway, key: str
) -> None:
    gateway.ollama.answer(GENERATE, tokens("abc", pause=1.8))

    _, late = leave(gateway, key, lines=1)

    assert late < 1.8 and the_row().completion_tokens == 1


def test_a_client_that_disconnects_from_a_half_written_whole_response_pays_for_that_half(
    gateway: RunningGateway, key: str
) -> None:
    gateway.ollama.answer(GENERATE, tokens("ab", done=False), Stall())

    _, late = leave(gateway, key, stream=False)

    assert late < NOTICED_SECONDS
    # It may disconnect before both lines were read; unread lines are not billed.
    assert the_row().outcome == "client_left" and the_row().completion_tokens <= 2


@pytest.mark.parametrize("lines", [0, 2], ids=["before the first line", "in mid-stream"])
def test_disconnects_are_noticed_in_time_fifty_times(
    gateway: RunningGateway, key: str, lines: int
) -> None:
    gateway.ollama.answer(GENERATE, tokens("ab", done=False) if lines else [], Stall())

    late = [leave(gateway, key, lines=lines)[1] for _ in range(50)]

    p50, p99 = percentile(late, 50), percentile(late, 99)
    phase = "in mid-stream" if lines else "before the first line"
    figure(f"leave to upstream closed, {phase}, {gateway.way}: p50 {p50:.3f} s, p99 {p99:.3f} s")
    assert p99 < NOTICED_SECONDS
    eventually(lambda: TokenUsage.objects.filter(outcome="client_left").count() == 50)


def test_clients_that_disconnect_in_the_queue_never_reach_the_model_server(
    small: RunningGateway, key: str
) -> None:
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
    assert len(small.ollama.requests) == Hold.objects.count() == 16
    assert not TokenUsage.objects.filter(billed=True).exists()


CROWDS = {"a thread each": (GENERATE, 1000), "two threads each": ("/v1/chat/completions", 200)}


@pytest.mark.parametrize(("path", "count"), CROWDS.values(), ids=CROWDS)
def test_a_thousand_readers_on_sixteen_threads_leave_nothing_behind(
    small: RunningGateway, key: str, path: str, count: int
) -> None:
    [pid] = small.server.worker_pids()
    # After its first request a thread has the files that it keeps.
    come_and_go(small, key, path, 16)
    threads, files = thread_count(pid), open_files(pid)

    come_and_go(small, key, path, count)

    # The lease thread may have opened a database connection meanwhile.
    eventually(lambda: open_files(pid) <= files + 8, seconds=30)
    eventually(lambda: thread_count(pid) <= threads)
    assert small.ollama.max_in_flight == 16


def come_and_go(gateway: RunningGateway, key: str, path: str, count: int) -> None:
    """This many clients ask for a stream, some are served, and all disconnect."""
    before = len(gateway.ollama.requests)
    upstream = GENERATE if path == GENERATE else "/api/chat"
    gateway.ollama.answer(upstream, tokens("a", done=False, path=upstream), Stall())
    crowd = [gateway.client(timeout=5) for _ in range(count)]
    for client in crowd:
        # nginx accepts 128 connections of one address and rejects the rest.
        with contextlib.suppress(*BROKEN):
            said = [{"role": "user", "content": "hello there"}]
            client.post(path, {**ASKED, "messages": said, "stream": True}, key=key)
    gateway.ollama.wait_for(before + 16)
    time.sleep(0.5)
    for client in crowd:
        client.close()
    gateway.ollama.answer(GENERATE, tokens("ab"))
    eventually(lambda: is_served(gateway, key), seconds=60)
    eventually(lambda: not Hold.objects.filter(state="open").exists(), seconds=30)


def is_served(gateway: RunningGateway, key: str) -> bool:
    """Tell whether a short request is served; otherwise it is told that all threads are busy."""
    seen = ask(gateway, key)
    assert seen.looks_complete or is_error(seen, 503, "gateway_busy"), seen
    return seen.looks_complete


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
def test_a_body_of_100_mb_is_refused_and_not_kept(
    gateway: RunningGateway, key: str, header: str, piece: bytes, end: bytes
) -> None:
    with growing_less_than(50, gateway, "a body of 100 MB"), gateway.client(timeout=20) as client:
        client.send(HEAD.format(key, header).encode())
        # It may be refused long before all of it is sent.
        with contextlib.suppress(OSError):
            for _ in range(1600):
                client.send(piece)
            client.send(end)
        assert client.read_head().status == 413
        assert client.read_json()["code"] == "request_too_large"
        assert client.read_line() is None and client.is_closed()

    assert nothing_happened(gateway)


def test_a_body_shorter_than_announced_leaves_nothing(gateway: RunningGateway, key: str) -> None:
    with gateway.client() as client:
        client.send(HEAD.format(key, "Content-Length: 5000\r\n").encode() + BODY)
        client.sock.shutdown(socket.SHUT_WR)
        if not gateway.nginx:  # nginx takes it for a disconnect.
            assert client.read_head().status == 400
            assert client.read_json()["code"] == "invalid_request"
        assert client.is_closed()
    assert nothing_happened(gateway)


# --- Old clients, and Expect --------------------------------------------------------------------


@pytest.mark.parametrize("broken", [False, True], ids=["whole", "broken"])
def test_an_http_1_0_client_knows_the_end_by_the_last_line(
    gateway: RunningGateway, key: str, broken: bool
) -> None:
    gateway.ollama.answer(GENERATE, tokens("ab", done=not broken), [Reset()] if broken else [])
    head = HEAD.format(key, f"Content-Length: {len(BODY)}\r\n").replace("HTTP/1.1", "HTTP/1.0")

    with gateway.client() as client:
        client.send(head.encode() + BODY)
        seen = read(client, time.monotonic())

    assert seen.looks_complete is not broken and "transfer-encoding" not in seen.headers
    assert not broken or seen.error["code"] == "upstream_broke"


EXPECTS = f"Content-Length: {len(BODY)}\r\nExpect: 100-continue\r\n"


def test_a_client_that_expects_100_gets_it_and_then_the_response(
    gateway: RunningGateway, key: str
) -> None:
    with gateway.client() as client:
        client.send(HEAD.format(key, EXPECTS).encode())
        assert client.read_head().status == 100
        client.send(BODY)
        assert client.read_head().status == 200
        client.read_all()

    assert len(gateway.ollama.calls(GENERATE)) == TokenUsage.objects.count() == 1


def test_a_client_without_a_key_gets_401_instead_of_100(gateway: RunningGateway, key: str) -> None:
    """The gateway does not ask for the body of a request that it rejects. nginx does by itself."""
    with gateway.client() as client:
        client.send(HEAD.format("x", EXPECTS).encode())
        if gateway.nginx:
            assert client.read_head().status == 100
            client.send(BODY)
        assert client.read_head().status == 401
        client.read_all()
        assert gateway.nginx or client.is_closed()

    assert nothing_happened(gateway)


def test_a_line_arrives_before_the_next_is_made_and_is_not_compressed(
    gateway: RunningGateway, key: str
) -> None:
    seen = {piece: threading.Event() for piece in "abcd"}
    steps = [[tokens(piece, done=False), Wait(event)] for piece, event in seen.items()]
    gateway.ollama.answer(GENERATE, steps, tokens("e"))

    with gateway.client() as client:
        client.post(GENERATE, ASKED, key=key, headers={"Accept-Encoding": "gzip, br"})
        assert "content-encoding" not in client.read_head().headers
        for piece, event in seen.items():
            assert client.read_json()["response"] == piece
            event.set()
        assert b'"done":true' in client.read_all()


def test_other_customers_are_served_after_all_this(gateway: RunningGateway, key: str) -> None:
    seen: list[Seen] = [ask(gateway, key) for _ in range(5)]

    assert all(one.looks_complete for one in seen)
