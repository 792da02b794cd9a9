"""A gateway that runs in its own processes: one for all tests of a file."""

from collections.abc import Iterator
from typing import Any

import pytest

from billing.models import Hold
from tests.fakes.ollama import FakeOllama
from tests.harness.gateway import DEADLINES, RunningGateway, eventually, gateway_env
from tests.servers.gunicorn import Gunicorn


@pytest.fixture(scope="module")
def running(django_db_setup: None, django_db_blocker: Any) -> Iterator[RunningGateway]:
    """A gateway for all tests of a file."""
    with FakeOllama() as ollama:
        env = gateway_env(ollama, **DEADLINES)
        with Gunicorn(env) as server:
            yield RunningGateway(server, ollama, env)


@pytest.fixture
def gateway(running: RunningGateway, transactional_db: None) -> Iterator[RunningGateway]:
    """A gateway with an empty database, for one test."""
    running.ollama.reset()
    yield running
    running.ollama.reset()
    eventually(lambda: not Hold.objects.filter(state="open").exists())
