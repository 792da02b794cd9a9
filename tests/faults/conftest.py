"""The gateway as it runs, a proxy between it and the model server, and a check of the ledger.

After each test every hold has ended, every admitted request has one usage row, and all sums agree.
"""

import contextlib
import json
import logging
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from django.db import connection

from billing import reconciliation
from billing.models import Hold, TokenUsage
from tests.fakes.ollama import FakeOllama
from tests.fakes.proxy import Proxy
from tests.faults.fuzz_run import LastError, hung
from tests.harness.callers import new_caller, set_price
from tests.harness.gateway import eventually, gateway_env
from tests.servers.client import BROKEN, RawClient
from tests.servers.gunicorn import Gunicorn
from tests.servers.nginx import MISSING, Nginx

# Short enough to test, long enough for a busy machine. The lease is shorter than every deadline, so
# that a hold whose lease is not renewed would be settled under a running response.
DEADLINES = {
    "UPSTREAM_FIRST_LINE_SECONDS": "3",
    "UPSTREAM_SILENCE_SECONDS": "2",
    "UPSTREAM_TOTAL_SECONDS": "5",
    "GATEWAY_WORKERS": "2",
    "GATEWAY_THREADS": "32",
    "HOLD_LEASE_SECONDS": "1.5",
    "CLIENT_SECONDS": "2",
}


@dataclass
class RunningGateway:
    """A running gateway, the model server behind it, and the proxy between them."""

    server: Gunicorn
    ollama: FakeOllama
    proxy: Proxy
    env: dict[str, str]
    # The URL that clients call: the gateway's, or nginx's.
    url: str
    nginx: Nginx | None = None

    @property
    def way(self) -> str:
        return "through nginx" if self.nginx else "direct"

    def client(self, timeout: float = 10.0, receive_buffer: int | None = None) -> RawClient:
        return RawClient(self.url, timeout, receive_buffer)


@contextlib.contextmanager
def started(behind_nginx: bool = False, **more: str) -> Iterator[RunningGateway]:
    """A gateway with two workers, on the tests' own database."""
    with contextlib.ExitStack() as stack:
        ollama = stack.enter_context(FakeOllama())
        proxy = stack.enter_context(Proxy(ollama.port))
        journal = stack.enter_context(tempfile.TemporaryDirectory(prefix="journal-"))
        here = {"OLLAMA_BASE": proxy.url, "JOURNAL_DIR": journal}
        env = gateway_env(ollama, **DEADLINES) | here | more
        server = stack.enter_context(Gunicorn(env))
        front = stack.enter_context(Nginx(server.port)) if behind_nginx else None
        yield RunningGateway(server, ollama, proxy, env, front.url if front else server.url, front)


@pytest.fixture(scope="module")
def running(
    request: Any, django_db_setup: None, django_db_blocker: Any
) -> Iterator[RunningGateway]:
    """A gateway for all tests of a file; see BOTH_WAYS."""
    with started(behind_nginx=getattr(request, "param", False)) as gateway:
        yield gateway


def ways() -> list[Any]:
    """Parameters for a fixture that starts a gateway: direct, or behind nginx."""
    without = pytest.mark.skipif(bool(MISSING), reason=MISSING)
    return [pytest.param(False, id="direct"), pytest.param(True, id="nginx", marks=without)]


# As a file's `pytestmark`: each of its tests runs directly and through nginx.
BOTH_WAYS = pytest.mark.parametrize("running", ways(), indirect=True)


@pytest.fixture
def gateway(running: RunningGateway, transactional_db: None) -> Iterator[RunningGateway]:
    """A gateway with an empty database, for one test. The books balance after it."""
    set_right(running)
    yield running
    set_right(running)
    books_balance()


@pytest.fixture
def key(transactional_db: None) -> str:
    """The key of a customer with credit, for a model with a price."""
    set_price("llama3", "0.002", "0.004")
    return new_caller("Alice").secret


def set_right(gateway: RunningGateway) -> None:
    gateway.proxy.cut()
    gateway.proxy.heal()
    gateway.ollama.reset()


def books_balance(seconds: float = 30.0) -> None:
    """Every hold ends within some seconds, with one usage row each, and every sum is right."""
    eventually(lambda: not Hold.objects.filter(state="open").exists(), seconds)
    assert TokenUsage.objects.count() == Hold.objects.count()
    broken = {check.name: found for check, found in reconciliation.differences() if found}
    assert not broken


# --- The application in this process --------------------------------------------------------------


@pytest.fixture
def careless(transactional_db: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Keep connections and do not wait for the disk: the database is not under test here. End a
    request that hangs."""
    before = signal.signal(signal.SIGALRM, hung)
    monkeypatch.setitem(connection.settings_dict, "CONN_MAX_AGE", None)
    if connection.vendor == "sqlite":
        quick = "PRAGMA journal_mode=WAL; PRAGMA synchronous=OFF;"
        monkeypatch.setitem(connection.settings_dict["OPTIONS"], "init_command", quick)
    connection.close()
    yield
    connection.close()
    signal.signal(signal.SIGALRM, before)


@pytest.fixture
def errors(monkeypatch: pytest.MonkeyPatch) -> LastError:
    """Replace every log: thousands of rejections are written there."""
    last = LastError()
    # Not by levels and handlers: pytest adds handlers later.
    monkeypatch.setattr(logging.Logger, "handle", lambda _, record: last.keep(record))
    return last


# --- Requests, and how a client reads the responses ----------------------------------------------


@dataclass
class Seen:
    """What a client has received when its connection has ended."""

    status: int
    headers: dict[str, str]
    body: bytes
    ended_properly: bool
    seconds: float

    @property
    def lines(self) -> list[bytes]:
        return self.body.splitlines()

    @property
    def looks_complete(self) -> bool:
        return self.status == 200 and looks_complete(self.body)

    @property
    def error(self) -> dict[str, Any]:
        """The error object that ends the body."""
        found: dict[str, Any] = json.loads(self.lines[-1])
        assert set(found) == {"error", "code", "request_id"}, found
        return found


def looks_complete(body: bytes) -> bool:
    """Tell whether a client of any family would take this stream for a complete response."""
    marks = (b"data: [DONE]", b"event: message_stop", b"event: response.completed")
    return any(mark in body for mark in marks) or any(map(_is_last, body.splitlines()))


def _is_last(line: bytes) -> bool:
    try:
        found = json.loads(line)
    except ValueError:
        return False
    return isinstance(found, dict) and found.get("done") is True


def ask(
    gateway: RunningGateway,
    key: str,
    path: str = "/api/generate",
    *,
    stream: bool = True,
    timeout: float = 15,
    **fields: Any,
) -> Seen:
    """Send a request of Ollama's family and read the response to its end."""
    body = {"model": "llama3", "prompt": "hello there", "stream": stream, **fields}
    began = time.monotonic()
    with gateway.client(timeout) as client:
        client.post(path, body, key=key)
        return read(client, began)


def read(client: RawClient, began: float) -> Seen:
    head = client.read_head()
    body, ended_properly = b"", True
    try:
        while (line := client.read_line()) is not None:
            body += line + b"\n"
    except BROKEN:
        ended_properly = False
    return Seen(head.status, head.headers, body, ended_properly, time.monotonic() - began)


def is_error(seen: Seen, status: int, code: str) -> bool:
    return (seen.status, seen.error["code"], seen.looks_complete) == (status, code, False)


def is_broken_off(seen: Seen, code: str) -> bool:
    """Tell whether a stream that had begun ended with an error line."""
    return is_error(seen, 200, code) and seen.ended_properly


def costs_nothing(*outcomes: str) -> bool:
    row = the_row()
    return (row.billed, row.cost) == (False, Decimal(0)) and row.outcome in outcomes


def nothing_happened(gateway: RunningGateway) -> bool:
    return gateway.ollama.requests == [] and not Hold.objects.exists()


def the_row(seconds: float = 30.0) -> TokenUsage:
    """Return the only usage row, waiting for it."""
    eventually(TokenUsage.objects.exists, seconds)
    return TokenUsage.objects.get()


def in_parallel(each: Iterable[Any], do: Callable[[Any], Any], seconds: float = 60.0) -> list[Any]:
    """Call a function for each item at the same time; return the results in the order in which they
    came."""
    found: list[Any] = []
    threads = [threading.Thread(target=lambda one=one: found.append(do(one))) for one in each]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(seconds)
    assert len(found) == len(threads)
    return found


def figure(text: str) -> None:
    """Print a figure for the promises page. Standard error passes through test processes."""
    print(f"\nFIGURE {text}", file=sys.stderr)


# --- Processes ----------------------------------------------------------------------------------


def resident_mb(pid: int) -> float:
    """How much memory a process holds, in megabytes."""
    return _status(pid, "VmRSS:") / 1024


def peak_mb(pid: int) -> float:
    """The most memory that a process has held, in megabytes."""
    return _status(pid, "VmHWM:") / 1024


def thread_count(pid: int) -> int:
    return int(_status(pid, "Threads:"))


def open_files(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


@contextlib.contextmanager
def growing_less_than(megabytes: float, gateway: RunningGateway, what: str) -> Iterator[None]:
    """Check that no worker's memory grows by more, not even for a moment."""
    before = {pid: resident_mb(pid) for pid in gateway.server.worker_pids()}
    for pid in before:
        Path(f"/proc/{pid}/clear_refs").write_text("5")  # Forget the peak.
    yield
    growth = max(peak_mb(pid) - held for pid, held in before.items())
    figure(f"{what}, {gateway.way}: {growth:+.1f} MB at the peak")
    assert growth < megabytes


def _status(pid: int, name: str) -> float:
    with open(f"/proc/{pid}/status") as file:
        [line] = [line for line in file if line.startswith(name)]
    return float(line.split()[1])


def percentile(values: list[float], percent: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]
