"""Bodies that are expensive to read or to parse: what they cost a worker and its other clients."""

import base64
import contextlib
import resource
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from billing.models import TokenUsage
from tests.fakes.script import tokens
from tests.faults.conftest import (
    RunningGateway,
    figure,
    growing_less_than,
    in_parallel,
    peak_mb,
    started,
    ways,
)
from tests.harness.callers import new_caller
from tests.servers.client import RawClient

GENERATE = "/api/generate"
SIZE = 31 * 1024 * 1024
MEGABYTES = 128
GAP = 5.0


def of_size(start: bytes, repeated: bytes, end: bytes) -> bytes:
    return start + repeated * ((SIZE - len(start) - len(end)) // len(repeated)) + end


IMAGE = base64.b64encode(bytes(range(256)) * 30_000)
PROMPT, MESSAGES = b'{"model": "llama3", "prompt": [', b'{"model": "llama3", "messages": ['
BODIES = {
    "plain text": of_size(b'{"model": "llama3", "prompt": "', b"hello there ", b'"}'),
    "one word": of_size(b'{"model": "llama3", "prompt": "', b"x", b'"}'),
    "one word and an emoji": of_size(
        b'{"model": "llama3", "system": "\xf0\x9f\x98\x80", "prompt": "', b"x", b'"}'
    ),
    "lists": of_size(PROMPT, b"[],", b"1]}"),
    "objects": of_size(PROMPT, b"{},", b"1]}"),
    "numbers": of_size(PROMPT, b"1,", b"1]}"),
    "messages": of_size(MESSAGES, b'{"role":"user","content":""},', b"{}]}"),
    "messages that are none": of_size(MESSAGES, b'{"a":1},', b"{}]}"),
    "quotes": of_size(b"", b'"', b""),
    "quotes in a text": of_size(b'{"model": "llama3", "prompt": "', b'\\"', b'"}'),
    "keys": of_size(b'{"model": "llama3", "prompt": {', b'"":1,', b'"a":1}}'),
    "images that are none": of_size(
        b'{"model": "llama3", "prompt": "hi", "images": [', b'"' + IMAGE + b'",', b'"a"]}'
    ),
    "three words": b'{"model": "llama3", "prompt": "%b", "system": "%b", "suffix": "%b"}'
    % ((b"x" * (SIZE // 3 - 100),) * 3),
    "small images": of_size(
        b'{"model": "llama3", "prompt": "hi", "images": [', b'"' + IMAGE[:4500] + b'",', b'"a"]}'
    ),
}


@pytest.fixture(scope="module", params=ways())
def running(
    request: Any, django_db_setup: None, django_db_blocker: Any
) -> Iterator[RunningGateway]:
    more = {"GATEWAY_WORKERS": "1", "UPSTREAM_TOTAL_SECONDS": "60", "CLIENT_SECONDS": "20"}
    with started(behind_nginx=request.param, **more) as gateway:
        yield gateway


class Listener:
    """Another customer, who reads a stream of a token every 20 ms and records the longest gap."""

    def __init__(self, gateway: RunningGateway, key: str, seconds: float) -> None:
        self.longest, self.pieces, self.ended = 0.0, 0, False
        self._asked = {"model": "llama3", "prompt": "hello", "options": {"num_predict": 5000}}
        self._client, self._key = gateway.client(timeout=30), key
        self.expected = int(seconds / 0.02)
        gateway.ollama.answer(GENERATE, tokens(["x"] * self.expected, pause=0.02))
        self._stopped = False
        self._thread = threading.Thread(target=self._read)

    def start(self) -> None:
        self._client.post(GENERATE, self._asked, key=self._key)
        self._client.read_head()
        self._client.read_line()
        self._thread.start()

    def stop(self) -> None:
        """Stop reading; the gap that is open counts."""
        self._stopped = True
        self._thread.join(30)
        self._client.close()

    def join(self) -> None:
        self._thread.join(60)
        self._client.close()

    def _read(self) -> None:
        last = time.monotonic()
        while not self._stopped and (line := self._client.read_json()) is not None:
            now = time.monotonic()
            self.longest, last = max(self.longest, now - last), now
            self.pieces += 1
            self.ended = line.get("done") is True and "usage" in line


@contextlib.contextmanager
def listening(gateway: RunningGateway, key: str) -> Iterator[Listener]:
    listener = Listener(gateway, key, seconds=30)
    listener.start()
    try:
        yield listener
    finally:
        listener.stop()


def send(gateway: RunningGateway, key: str, body: bytes) -> int:
    """Send a body as far as the gateway takes it; return the status."""
    with RawClient(gateway.url, timeout=30) as client:
        with contextlib.suppress(ConnectionError):  # It may be refused before it is read whole.
            client.post(GENERATE, body, key=key)
        return client.read_head().status


@pytest.mark.parametrize("at_once", [1, 4])
@pytest.mark.parametrize("kind", BODIES)
def test_no_hostile_body_takes_much_memory_or_time(
    gateway: RunningGateway, key: str, kind: str, at_once: int
) -> None:
    hostile = new_caller("Harry").secret
    what = f"{at_once} × {kind}"

    with listening(gateway, key) as other, growing_less_than(MEGABYTES, gateway, what):
        time.sleep(0.3)
        statuses = in_parallel([hostile] * at_once, lambda one: send(gateway, one, BODIES[kind]))

    figure(f"{what}, {gateway.way}: longest gap {other.longest:.2f} s, {sorted(statuses)}")
    assert set(statuses) <= {400, 402, 413, 503}, statuses
    assert other.longest < GAP


def test_a_body_without_credit_is_not_read(gateway: RunningGateway, key: str) -> None:
    poor = new_caller("Poor", credit="0").secret

    with (
        listening(gateway, key) as other,
        growing_less_than(4, gateway, "4 × lists without credit"),
    ):
        statuses = in_parallel([poor] * 4, lambda one: send(gateway, one, BODIES["lists"]))

    assert set(statuses) == {402} and other.longest < GAP


# Two workers of this size and their master fit into a container of 1 GiB.
WORKER_MEGABYTES = 490


@pytest.mark.parametrize("kind", ["lists", "images that are none", "one word and an emoji"])
def test_three_hostile_bodies_break_no_stream(key: str, kind: str) -> None:
    """Three such bodies once ended both workers of a container of 1 GiB with ten streams.

    The kernel gives each worker at most half of it. A memory cgroup would count both together, but
    only an administrator can create one.
    """
    hostile = new_caller("Harry", credit="25").secret
    with started(CLIENT_SECONDS="20", UPSTREAM_TOTAL_SECONDS="60") as gateway:
        workers = gateway.server.worker_pids()
        for pid in workers:
            resource.prlimit(pid, resource.RLIMIT_DATA, (WORKER_MEGABYTES * 2**20,) * 2)
        others = [Listener(gateway, key, seconds=4) for _ in range(10)]
        with growing_less_than(MEGABYTES, gateway, f"3 × {kind}, two workers, ten streams"):
            for other in others:
                other.start()
            in_parallel([hostile] * 3, lambda one: send(gateway, one, BODIES[kind]))
            for other in others:
                other.join()
        assert gateway.server.worker_pids() == workers
        held = sum(peak_mb(pid) for pid in (gateway.server.pid, *workers))
        figure(f"3 × {kind}, ten streams: {held:.0f} MB of 1,024 MB at the peak")
        assert held < 1024 and "MemoryError" not in gateway.server.log()

    assert all(other.ended for other in others)
    rows = TokenUsage.objects.filter(outcome="complete", completion_tokens=others[0].expected)
    assert rows.count() == 10
