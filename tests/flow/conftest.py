"""The gateway as it runs: gunicorn with two workers, on the tests' own database."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from django.conf import settings as django_settings
from django.db import connection

from billing.models import Hold, TokenUsage
from tests.fakes.ollama import FakeOllama
from tests.servers.client import RawClient
from tests.servers.gunicorn import Gunicorn


@dataclass
class House:
    """A running gateway and the model server behind it."""

    server: Gunicorn
    ollama: FakeOllama
    env: dict[str, str]

    def client(self, timeout: float = 10.0) -> RawClient:
        return RawClient(self.server.url, timeout=timeout)


# Short enough to test, longer than the second within which a leaving client must be noticed.
DEADLINES = {
    "UPSTREAM_FIRST_LINE_SECONDS": "4",
    "UPSTREAM_SILENCE_SECONDS": "3",
    "UPSTREAM_TOTAL_SECONDS": "30",
    "GATEWAY_THREADS": "64",
    "HOLD_LEASE_SECONDS": "3",
}


def database_url() -> str:
    """Return the address of the database this test process uses."""
    at = connection.settings_dict
    if connection.vendor == "sqlite":
        return f"sqlite:///{at['NAME']}"
    host = at["HOST"].replace("/", "%2F")
    return f"postgres://{at['USER']}:{at['PASSWORD']}@{host}:{at['PORT']}/{at['NAME']}"


def gateway_env(ollama: FakeOllama, **more: str) -> dict[str, str]:
    return {
        "DJANGO_SETTINGS_MODULE": "config.settings",
        "SECRET_KEY": django_settings.SECRET_KEY,
        "DATABASE_URL": database_url(),
        "DATABASE_POOL_SIZE": "8",
        "OLLAMA_BASE": ollama.url,
        "JOURNAL_DIR": django_settings.JOURNAL_DIR,
        **more,
    }


@pytest.fixture(scope="module")
def running(django_db_setup: None, django_db_blocker: Any) -> Iterator[House]:
    """A gateway for all tests of a file."""
    with FakeOllama() as ollama:
        env = gateway_env(ollama, **DEADLINES)
        with Gunicorn(env) as server:
            yield House(server, ollama, env)


@pytest.fixture
def house(running: House, transactional_db: None) -> Iterator[House]:
    """A gateway with an empty database, for one test."""
    running.ollama.reset()
    yield running
    running.ollama.reset()
    eventually(lambda: not Hold.objects.filter(state="open").exists())


def eventually(condition: Callable[[], Any], seconds: float = 5.0) -> Any:
    """Return what a condition says once it is true; fail after some seconds."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "it did not come true"
        time.sleep(0.01)
    return found


def the_row() -> TokenUsage:
    """Return the only usage row, waiting for it."""
    eventually(TokenUsage.objects.exists)
    return TokenUsage.objects.get()
