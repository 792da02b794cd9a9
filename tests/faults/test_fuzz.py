"""No input makes a 5xx: requests with something wrong in them, through the whole stack.

The application is called as a server calls it, with raw headers and URLs, and the model server is a
real socket. FUZZ: the number of requests. SEED: which ones. FUZZ_ONE: the name of one that failed,
to make that one again.
"""

import os
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from django.db import connection
from django.urls import get_resolver

from accounts.authentication import KeyAuthentication
from accounts.models import CUSTOMER_SCOPES, Scope
from billing.models import Hold
from config.wsgi import django_application as application
from gateway.http.media_types import Application
from tests.fakes.ollama import FakeOllama
from tests.faults.conftest import books_balance, figure
from tests.faults.fuzz import Route, Sent, fuzzed, plain, routes
from tests.faults.fuzz_run import LastError, Run, try_one
from tests.faults.oracle import Witness
from tests.harness.callers import new_caller

SEED = os.environ.get("SEED", "19")
CHUNKS = 4
ROUTES = [*dict.fromkeys(routes(get_resolver()))]
# The percentages that must be authenticated and served; otherwise only authentication is tested.
LET_IN, ANSWERED = 30, 10


def number() -> int:
    """Return how many requests one chunk makes."""
    usual = 50_000 if connection.vendor == "sqlite" else 10_000
    return int(os.environ.get("FUZZ", usual)) // CHUNKS


@dataclass
class RunningGateway:
    """The application with its surroundings, and the keys of the callers."""

    application: Application
    witness: Witness
    errors: LastError
    keys: list[bytes]

    def make(self, name: str) -> Sent:
        """Return the request of a name."""
        dice = random.Random(name)
        return fuzzed(dice.choice(ROUTES), dice.choice(self.keys), dice)

    def try_one(self, name: str, sent: Sent, run: Run) -> int:
        """Make a request and judge its response."""
        self.witness.may_manage = False
        answer = try_one(self.application, self.errors, name, sent, run)
        while self.witness.complaints:
            run.fails(f"reached the model server: {self.witness.complaints.pop()}", name, sent)
        return answer.status


@pytest.fixture
def gateway(careless: None, errors: LastError, ollama: FakeOllama, priced: Any) -> RunningGateway:
    """Alice, and Olga whose key has every scope, both with more credit than they can use."""
    scopes = [*CUSTOMER_SCOPES, "models"]
    callers = [new_caller("Alice", "1000000"), new_caller("Olga", "1000000", scopes)]
    return RunningGateway(
        application, Witness(ollama), errors, [who.secret.encode() for who in callers]
    )


@pytest.fixture
def run(gateway: RunningGateway, monkeypatch: pytest.MonkeyPatch) -> Run:
    """A run that counts the requests that were authenticated."""
    made = Run(asked=gateway.witness.asked)
    authenticate = KeyAuthentication.authenticate_credentials

    def counted(self: KeyAuthentication, token: bytes) -> Any:
        found = authenticate(self, token)
        made.let_in += 1
        gateway.witness.may_manage = found[1].allows(Scope.MODELS)
        return found

    monkeypatch.setattr(KeyAuthentication, "authenticate_credentials", counted)
    return made


@pytest.fixture(scope="module")
def total() -> Iterator[Run]:
    """All runs of this file, reported at its end."""
    runs = Run()
    yield runs
    figure(f"P19 {runs}")


# --- The promise ----------------------------------------------------------------------------------


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: route.path)
def test_the_unmodified_request_is_served(gateway: RunningGateway, run: Run, route: Route) -> None:
    status = gateway.try_one("plain", plain(route, gateway.keys[1]), run)

    expected = (302, 403) if route.path.startswith("/admin") else (200,)
    assert status in expected and not run.failed, run.failed


@pytest.mark.skipif("FUZZ_ONE" in os.environ, reason="one was asked for")
@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_no_input_makes_a_5xx(
    gateway: RunningGateway, run: Run, total: Run, chunk: int, ollama: Any
) -> None:
    began = time.monotonic()

    for n in range(number()):
        name = f"{SEED}-{chunk}-{n}"
        gateway.try_one(name, gateway.make(name), run)
        ollama.requests.clear()

    run.seconds = time.monotonic() - began
    total.add(run)
    print(f"\nSEED={SEED}, chunk {chunk}: {run}")
    assert not run.failed, f"{len(run.failed)} kinds of failure:\n\n" + "\n\n".join(
        run.failed.values()
    )
    assert run.let_in * 100 >= number() * LET_IN, "only authentication was tested"
    assert run.statuses[200] * 100 >= number() * ANSWERED, "hardly any request was served"
    assert Hold.objects.exists()
    books_balance()


@pytest.mark.skipif("FUZZ_ONE" not in os.environ, reason="makes one request again: FUZZ_ONE=19-0-7")
def test_one_request_again(gateway: RunningGateway, run: Run) -> None:
    name = os.environ["FUZZ_ONE"]

    status = gateway.try_one(name, gateway.make(name), run)

    print(f"\n{name} was answered {status}")
    assert not run.failed, "\n".join(run.failed.values())
