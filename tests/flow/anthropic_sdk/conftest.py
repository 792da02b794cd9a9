"""A gateway with short timeouts, and a client of Anthropic's SDK with Alice's key."""

from collections.abc import Iterator
from typing import Any

import anthropic
import pytest

from tests.fakes.ollama import FakeOllama
from tests.flow.anthropic_sdk.calls import (
    KEEP_ALIVE,
    client_of,
)
from tests.harness.callers import Caller
from tests.harness.gateway import DEADLINES, RunningGateway, gateway_env
from tests.servers.gunicorn import Gunicorn

# Small enough to exceed in a test.
TIGHT = {
    "KEEP_ALIVE_SECONDS": str(KEEP_ALIVE),
    "UPSTREAM_FIRST_LINE_SECONDS": "1.5",
    "UPSTREAM_SILENCE_SECONDS": "2",
    "MAX_BODY_BYTES": "100000",
}


@pytest.fixture(scope="module")
def running(django_db_setup: None, django_db_blocker: Any) -> Iterator[RunningGateway]:
    """A gateway with short timeouts, for all tests of a file."""
    with FakeOllama() as ollama:
        env = gateway_env(ollama, **(DEADLINES | TIGHT))
        with Gunicorn(env) as server:
            yield RunningGateway(server, ollama, env)


@pytest.fixture
def client(gateway: RunningGateway, alice: Caller) -> anthropic.Anthropic:
    return client_of(gateway, alice.secret)
