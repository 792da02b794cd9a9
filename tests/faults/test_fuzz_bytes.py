"""No bytes make a 5xx: malformed HTTP, sent to a real gunicorn.

Each connection gets a response or is closed. Two statuses above 500 are correct: 501 for a transfer
coding that is not supported, and the 503 of /readyz while the model server is late. FUZZ_BYTES: the
number of requests. SEED: which ones.
"""

import contextlib
import os
import re
import socket
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from random import Random
from typing import Any

import pytest
from django.urls import get_resolver

from accounts.models import CUSTOMER_SCOPES
from tests.faults.conftest import RunningGateway, ask, figure, started
from tests.faults.fuzz import fuzzed, good, routes
from tests.faults.fuzz_bytes import spoiled
from tests.faults.oracle import INTERNALS, Witness
from tests.harness.callers import new_caller

SEED = os.environ.get("SEED", "19")
NUMBER = int(os.environ.get("FUZZ_BYTES", "4000"))
ROUTES = [*dict.fromkeys(routes(get_resolver()))]
CLIENTS = 16
SHOWN = 10
# The gateway cuts an unfinished request after a second. A client gives up after this time.
FORGOTTEN_AFTER = 20.0
# A client stops reading when nothing came for this long after a response.
QUIET = 0.3

# Lines of unhandled exceptions, and keys, which are never logged.
UNFORESEEN = re.compile("Unexpected error|Error handling request|Internal Server|Exception in")
KEY = re.compile("olg_[0-9a-f]{64}")
STATUS = re.compile(rb"HTTP/1\.\d (\d{3}) ")


@pytest.fixture(scope="module")
def running(django_db_setup: None, django_db_blocker: Any) -> Iterator[RunningGateway]:
    with started(CLIENT_SECONDS="1") as gateway:
        yield gateway


@pytest.fixture
def keys(transactional_db: None, priced: Any) -> list[bytes]:
    scopes = [*CUSTOMER_SCOPES, "models"]
    callers = [new_caller("Alice", "1000000"), new_caller("Olga", "1000000", scopes)]
    return [caller.secret.encode() for caller in callers]


@dataclass(frozen=True)
class Told:
    """What a client received for its bytes."""

    name: str
    request: bytes
    answers: bytes
    closed: bool

    @property
    def statuses(self) -> list[int]:
        return [int(status) for status in STATUS.findall(self.answers)]

    @property
    def complaint(self) -> str:
        """What is wrong with the response, or an empty text."""
        for status in self.statuses:
            if status >= 500 and not is_no_fault(self, status):
                return f"answered {status}"
        if not self.closed and not self.statuses:
            return "neither answered nor closed"
        found = INTERNALS.search(self.answers)
        return f"tells of the inside: {found[0]!r}" if found else ""

    def __str__(self) -> str:
        shown = [
            each if len(each) < 3_000 else each[:3_000] for each in (self.request, self.answers)
        ]
        return f"{self.complaint}: {self.name}\n  sent {shown[0]!r}\n  got {shown[1]!r}"


def is_no_fault(told: Told, status: int) -> bool:
    """Tell whether a status above 500 is correct: a transfer coding that is not supported, or a
    model server that did not report its version in time."""
    if status == 501:
        return b"transfer-encoding" in told.request.lower() and b"invalid_request" in told.answers
    return status == 503 and b'{"status": "not ready", "database": "ok"' in told.answers


def say(gateway: RunningGateway, name: str, keys: list[bytes]) -> Told:
    """Send the bytes of a name; return everything that came back."""
    dice = Random(name)
    make = dice.choice((good, fuzzed))
    request = spoiled(make(dice.choice(ROUTES), dice.choice(keys), dice), dice)
    with socket.create_connection(("127.0.0.1", gateway.server.port), FORGOTTEN_AFTER) as sock:
        # It may be refused before it is all sent.
        with contextlib.suppress(OSError):
            sock.sendall(request)
            if dice.random() < 0.2:
                sock.shutdown(socket.SHUT_WR)
        answers, closed = heard(sock)
    return Told(name, request, answers, closed)


def heard(sock: socket.socket) -> tuple[bytes, bool]:
    """Return the bytes that came, and whether the connection was closed after them."""
    found, deadline = b"", time.monotonic() + FORGOTTEN_AFTER
    while time.monotonic() < deadline:
        sock.settimeout(QUIET if found else FORGOTTEN_AFTER)
        try:
            piece = sock.recv(65_536)
        except TimeoutError:
            return found, False
        except ConnectionError:
            return found, True
        if not piece:
            return found, True
        found += piece
    return found, False


def test_no_bytes_make_a_5xx(gateway: RunningGateway, keys: list[bytes]) -> None:
    pids, witness = sorted(gateway.server.worker_pids()), Witness(gateway.ollama)
    began = time.monotonic()

    with ThreadPoolExecutor(CLIENTS) as clients:
        names = [f"{SEED}-{n}" for n in range(NUMBER)]
        told = list(clients.map(lambda name: say(gateway, name, keys), names))

    statuses = Counter(status for each in told for status in each.statuses)
    silent = sum(not each.statuses for each in told)
    figure(
        f"P19 {len(told):,} requests of broken bytes (SEED={SEED}) in "
        f"{time.monotonic() - began:.0f} s: {dict(sorted(statuses.items()))}, closed: {silent:,}"
    )
    failed = {each.complaint: str(each) for each in told if each.complaint}
    assert not failed, "\n\n".join([*failed.values()][:SHOWN])
    assert statuses[503] < 10, statuses
    assert not witness.complaints, witness.complaints[:SHOWN]
    assert statuses[200] * 10 > NUMBER, "hardly anything was answered"
    assert ask(gateway, keys[0].decode()).looks_complete
    assert sorted(gateway.server.worker_pids()) == pids
    log = gateway.server.log()
    assert not UNFORESEEN.search(log), lines_about(UNFORESEEN, log)
    assert not KEY.search(log), lines_about(KEY, log)


def lines_about(pattern: re.Pattern[str], log: str) -> str:
    found = [line for line in log.splitlines() if pattern.search(line)]
    return "\n".join(found[:SHOWN])
