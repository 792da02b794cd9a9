"""Two hundred concurrent streams on two workers hold no database connection."""

import threading
from collections.abc import Iterator
from typing import Any

import pytest
import requests
from django.db import connection

from billing.models import TokenUsage
from tests.fakes.ollama import FakeOllama
from tests.fakes.script import Wait, tokens
from tests.harness.callers import Caller, set_price
from tests.harness.gateway import RunningGateway, eventually, gateway_env
from tests.servers.gunicorn import Gunicorn

STREAMS = 200


@pytest.fixture
def default_gateway(django_db_setup: None, transactional_db: None) -> Iterator[RunningGateway]:
    """A gateway with default settings: 2 workers with 256 threads and 8 connections each."""
    with FakeOllama() as ollama:
        env = gateway_env(ollama)
        with Gunicorn(env) as server:
            yield RunningGateway(server, ollama, env)


def test_two_hundred_concurrent_streams_complete(
    default_gateway: RunningGateway, alice: Caller
) -> None:
    set_price("llama3", "0.002")
    go_on = threading.Event()
    half = tokens("ab", done=False)
    default_gateway.ollama.answer("/api/generate", half, Wait(go_on), tokens("cd"))
    last_lines: list[bytes] = []
    threads = [Stream(default_gateway, alice, last_lines) for _ in range(STREAMS)]

    default_gateway.ollama.wait_for(STREAMS, timeout=60)
    eventually(lambda: default_gateway.ollama.in_flight == STREAMS, seconds=30)
    connections = gateway_connections()
    go_on.set()
    for thread in threads:
        thread.join(60)

    assert len(last_lines) == STREAMS and all(b'"done":true' in line for line in last_lines)
    assert TokenUsage.objects.filter(outcome="complete").count() == STREAMS
    # Two workers with a pool of 8 each, and this test's own.
    assert connections is None or connections <= 2 * 8 + 2


class Stream(threading.Thread):
    def __init__(self, gateway: RunningGateway, alice: Caller, last_lines: list[bytes]) -> None:
        super().__init__()
        self.gateway, self.alice, self.last_lines = gateway, alice, last_lines
        self.start()

    def run(self) -> None:
        body: dict[str, Any] = {"model": "llama3", "prompt": "hi"}
        url = f"{self.gateway.server.url}/api/generate"
        with requests.post(
            url, json=body, headers=self.alice.headers, stream=True, timeout=90
        ) as answer:
            self.last_lines.append(list(answer.iter_lines())[-1])


def gateway_connections() -> int | None:
    """Return the number of connections to the database, or None on SQLite."""
    if connection.vendor != "postgresql":
        return None
    with connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()")
        return int(cursor.fetchone()[0])
