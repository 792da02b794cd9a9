"""Slow and silent clients: what they cost other clients, and for how long.

Directly, to a gateway of 32 threads, and through nginx. A direct client that has begun to send gets
a thread for CLIENT_SECONDS (2 here); through nginx it gets none.
"""

import contextlib
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from billing.models import Hold, TokenUsage
from tests.fakes.proxy import HalfOpen, Proxy, Slicer, Stall
from tests.fakes.script import Sleep, Wait, tokens
from tests.faults.conftest import (
    RunningGateway,
    ask,
    figure,
    growing_less_than,
    in_parallel,
    open_files,
    percentile,
    started,
    ways,
)
from tests.harness.gateway import eventually
from tests.servers.client import BROKEN, RawClient

GENERATE = "/api/generate"
ASKED = {"model": "llama3", "prompt": "hello there", "stream": True}
THREADS = 32
TOTAL = 20.0
CLIENT_SECONDS = 2.0
# The send timeout passes once for the rest of a piece, and once for the next.
NEVER_READS = 2 * CLIENT_SECONDS
# gunicorn checks deadlines about once a second; a busy machine takes more.
LATE = 10.0
CUT = "A client was too slow to send or to read, and was disconnected."
HEAD = "POST /api/generate HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {}\r\n"


@pytest.fixture(scope="module", params=ways())
def running(
    request: Any, django_db_setup: None, django_db_blocker: Any
) -> Iterator[RunningGateway]:
    more = {
        "GATEWAY_WORKERS": "1",
        "GATEWAY_THREADS": str(THREADS),
        "UPSTREAM_TOTAL_SECONDS": str(TOTAL),
    }
    with started(behind_nginx=request.param, **more) as gateway:
        yield gateway


@contextlib.contextmanager
def crowd(gateway: RunningGateway, count: int, sent: bytes = b"") -> Iterator[list[RawClient]]:
    """Connections on which these bytes were sent, and nothing follows."""
    clients = [gateway.client(timeout=20) for _ in range(count)]
    try:
        for client in clients:
            client.send(sent)
        yield clients
    finally:
        for client in clients:
            client.close()


def latencies(gateway: RunningGateway, key: str, count: int = 20) -> list[float]:
    """The durations of short requests, one after another."""
    gateway.ollama.answer(GENERATE, tokens("ab"))
    found = [ask(gateway, key) for _ in range(count)]
    assert all(seen.looks_complete for seen in found)
    return sorted(seen.seconds for seen in found)


def seconds_refused(gateway: RunningGateway, key: str) -> float:
    """Retry until a request is served; return for how long all threads were busy. Each rejection is
    immediate."""
    began = time.monotonic()
    while (seen := ask(gateway, key)).status == 503:
        assert seen.error["code"] == "gateway_busy" and seen.seconds < LATE
        assert time.monotonic() < began + 30, "the threads are held"
    return time.monotonic() - began


def report(gateway: RunningGateway, what: str, calm: list[float], found: list[float]) -> None:
    was, now = percentile(calm, 50) * 1000, percentile(found, 50) * 1000
    figure(f"short requests beside {what}, {gateway.way}: p50 {now:.0f} ms (alone {was:.0f} ms), "
           f"worst {found[-1] * 1000:.0f} ms")  # fmt: skip


def all_threads_are_free(gateway: RunningGateway, key: str) -> None:
    """As many streams as there are threads can run at once."""
    go_on = threading.Event()
    gateway.ollama.answer(GENERATE, tokens("a", done=False), Wait(go_on), tokens("b"))
    clients: list[RawClient] = []
    try:
        # A client that comes while a thread ends its last connection is refused; it asks again.
        deadline = time.monotonic() + 30
        while len(clients) < THREADS and time.monotonic() < deadline:
            asking = [gateway.client() for _ in range(THREADS - len(clients))]
            for client in asking:
                client.post(GENERATE, ASKED, key=key)
            clients += [client for client in asking if client.read_head().status == 200]
        eventually(lambda: gateway.ollama.in_flight == THREADS)
    finally:
        go_on.set()
        for client in clients:
            client.read_all()
            client.close()


def is_cut(client: RawClient) -> bool:
    """Tell whether the server closes a client's connection, with or without a response."""
    with contextlib.suppress(*BROKEN):
        client.read_head()
        client.read_all()
    return client.is_closed()


# --- Before a request is whole ------------------------------------------------------------------


def test_five_hundred_silent_connections_slow_down_no_other_client(
    gateway: RunningGateway, key: str
) -> None:
    calm = latencies(gateway, key)
    all_threads_are_free(
        gateway, key
    )  # After its first request a thread has the files that it keeps.
    [pid] = gateway.server.worker_pids()
    before = open_files(pid)

    with crowd(gateway, 500) as silent:
        found = latencies(gateway, key)
        assert all(is_cut(client) for client in silent), "a silent connection is kept for ever"

    report(gateway, "500 silent connections", calm, found)
    assert found[-1] < LATE
    eventually(lambda: open_files(pid) <= before)


@pytest.mark.parametrize("body", [False, True], ids=["half a head", "half a body"])
def test_half_requests_delay_others_for_two_seconds_at_most(
    gateway: RunningGateway, key: str, body: bool
) -> None:
    calm = latencies(gateway, key)
    half = HEAD.format(key) + ("Content-Length: 500\r\n\r\n{" if body else "X-Half: ")

    with crowd(gateway, THREADS * 2 if gateway.nginx else THREADS, half.encode()) as dawdlers:
        time.sleep(0.2)
        waited = 0.0 if gateway.nginx else seconds_refused(gateway, key)
        found = latencies(gateway, key)
        ends = [dawdlers[0].read_head().status] if body and not gateway.nginx else []
        for client in dawdlers[len(ends) :]:
            assert is_cut(client)

    report(gateway, "half bodies" if body else "half heads", calm, found)
    figure(f"others were refused for {waited:.1f} s, {gateway.way}")
    assert found[-1] < LATE and waited < CLIENT_SECONDS + LATE
    assert ends in ([], [408]) and gateway.ollama.requests[-1].json["prompt"] == "hello there"
    all_threads_are_free(gateway, key)


def test_a_head_that_trickles_is_cut_as_a_whole(gateway: RunningGateway, key: str) -> None:
    began = time.monotonic()
    with crowd(gateway, 4, HEAD.format(key).encode()) as dawdlers, contextlib.suppress(OSError):
        for number in range(100):
            for client in dawdlers:
                client.send(f"X-{number}: y\r\n".encode())
            time.sleep(0.2)
        raise AssertionError("it went on for twenty seconds")

    assert CLIENT_SECONDS - 0.5 < time.monotonic() - began < CLIENT_SECONDS + LATE
    all_threads_are_free(gateway, key)


def test_a_client_that_stalls_in_its_body_gets_408(gateway: RunningGateway, key: str) -> None:
    with gateway.client() as client:
        client.send(HEAD.format(key).encode() + b"Content-Length: 500\r\n\r\n{")
        if gateway.nginx:
            assert client.is_closed(), "nginx has a word for it after all"
        else:
            assert client.read_head().status == 408
            assert client.read_json()["code"] == "body_timeout"
    assert not Hold.objects.exists()


# --- While the answer is written ----------------------------------------------------------------


@pytest.mark.parametrize("path", [GENERATE, "/v1/chat/completions"])
def test_a_client_that_never_reads_is_cut_and_its_thread_is_freed(
    gateway: RunningGateway, key: str, path: str
) -> None:
    upstream = "/api/chat" if "chat" in path else GENERATE
    calm = latencies(gateway, key)
    # 80 MB each: more than the kernels' buffers between the model server and a client can grow to.
    gateway.ollama.answer(upstream, tokens(["x" * 40_000] * 2000, path=upstream))
    asked_before = len(gateway.ollama.calls(upstream))
    readers = [gateway.client(receive_buffer=4096) for _ in range(THREADS // 2)]
    for client in readers:
        said = [{"role": "user", "content": "hello there"}]
        client.post(path, {**ASKED, "messages": said}, key=key)
    gateway.ollama.wait_for(asked_before + THREADS // 2, upstream, timeout=10)
    found = latencies(gateway, key) if upstream != GENERATE else calm

    eventually(lambda: not Hold.objects.filter(state="open").exists(), NEVER_READS + LATE)
    left = TokenUsage.objects.filter(outcome="client_left")
    others = TokenUsage.objects.exclude(outcome="client_left").filter(completion_tokens__gt=2)
    assert list(others.values_list("operation", "outcome", "completion_tokens")) == []
    assert left.count() == THREADS // 2

    if upstream != GENERATE:
        report(gateway, "16 readers that never read", calm, found)
        assert found[-1] < LATE
    assert not left.filter(completion_tokens__gte=2000).exists()
    gateway.ollama.wait_idle()
    all_threads_are_free(gateway, key)
    for client in readers:
        client.close()


def test_a_slow_but_steady_reader_is_not_cut_before_the_total_deadline(
    gateway: RunningGateway, key: str
) -> None:
    """18 MB each, so that the gateway waits for the client all the time."""
    gateway.ollama.answer(GENERATE, tokens(["x" * 9000] * 2000))
    readers = [gateway.client(receive_buffer=65_536) for _ in range(4)]
    for client in readers:
        client.post(GENERATE, ASKED, key=key, headers={"Connection": "close"})

    with growing_less_than(8, gateway, "four slow readers"):
        ends = in_parallel(readers, lambda client: drink(client, 150_000))

    assert all(b'"code":' in last and last.endswith(b"\r\n0\r\n\r\n") for _, last in ends)
    took = [seconds for seconds, _ in ends]
    # Buffers on the way must not delay the end without limit.
    assert min(took) > TOTAL and max(took) < TOTAL + (25 if gateway.nginx else 15), took
    assert not TokenUsage.objects.filter(outcome="client_left").exists()


def drink(client: RawClient, rate: int) -> tuple[float, bytes]:
    """Read this many bytes a second until the connection ends; return the duration and the last
    bytes."""
    began, taken, last = time.monotonic(), 0, b""
    while piece := client.sock.recv(rate // 20):
        taken, last = taken + len(piece), (last + piece)[-300:]
        time.sleep(max(0.0, taken / rate - (time.monotonic() - began)))
    return time.monotonic() - began, last


def test_a_request_sent_byte_by_byte_in_time_is_served(gateway: RunningGateway, key: str) -> None:
    port = int(gateway.url.rpartition(":")[2])
    with Proxy(port) as slow:
        slow.harm(Slicer(40, pause=0.05, request=True))
        with RawClient(slow.url) as client:
            client.post(GENERATE, ASKED, key=key)
            assert b'"done":true' in client.read_all()


def test_a_client_whose_cable_was_pulled_is_billed_for_the_bytes_sent(
    gateway: RunningGateway, key: str
) -> None:
    """Nothing reports that such a client is gone; its response ends as if it were there."""
    gateway.ollama.answer(GENERATE, Sleep(0.2), tokens("ab"))
    port = int(gateway.url.rpartition(":")[2])
    with Proxy(port) as cable:
        cable.harm(HalfOpen(request=True), Stall())
        with RawClient(cable.url) as client:
            client.post(GENERATE, ASKED, key=key)
            gateway.ollama.wait_for(1)
        row = eventually(lambda: TokenUsage.objects.first())

    assert (row.outcome, row.completion_tokens) == ("complete", 2)


def test_a_client_that_was_cut_is_one_line_in_the_log(gateway: RunningGateway, key: str) -> None:
    with gateway.client(receive_buffer=4096) as client:
        gateway.ollama.answer(GENERATE, tokens(["x" * 40_000] * 2000))
        client.post(GENERATE, ASKED, key=key)
        eventually(TokenUsage.objects.exists, NEVER_READS + LATE)

    if not gateway.nginx:  # nginx cuts it first, so the gateway sees a disconnect.
        eventually(lambda: CUT in gateway.server.log())
    assert "Traceback" not in gateway.server.log()
