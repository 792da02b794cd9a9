"""Responses that nginx makes itself, in the shape of the gateway's errors."""

import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.faults.conftest import (
    RunningGateway,
    ask,
    is_error,
    nothing_happened,
    started,
)
from tests.harness.gateway import eventually
from tests.servers.nginx import MISSING

pytestmark = pytest.mark.skipif(bool(MISSING), reason=MISSING)
# limit_conn in deploy/nginx.conf.
CONNECTIONS = 128
HALF = "POST /api/generate HTTP/1.1\r\nHost: localhost\r\nContent-Length: 500\r\n\r\n{"


@pytest.fixture(scope="module")
def running(django_db_setup: None, django_db_blocker: Any) -> Iterator[RunningGateway]:
    with started(behind_nginx=True) as gateway:
        yield gateway


def test_too_many_connections_of_one_address_get_503_with_retry_after(
    gateway: RunningGateway, key: str
) -> None:
    crowd = [gateway.client() for _ in range(CONNECTIONS)]
    for client in crowd:
        client.send(HALF.encode())
    time.sleep(0.2)

    seen = ask(gateway, key)
    for client in crowd:
        client.close()

    assert is_error(seen, 429, "too_many_connections") and int(seen.headers["retry-after"]) > 0
    assert seen.headers["content-type"] == "application/json" and nothing_happened(gateway)
    eventually(lambda: ask(gateway, key).looks_complete)


# The last test of this file: it stops the gateway.
def test_a_stopped_gateway_gives_503_with_retry_after(gateway: RunningGateway, key: str) -> None:
    gateway.server.stop()

    seen = ask(gateway, key)

    assert is_error(seen, 503, "gateway_stopping") and int(seen.headers["retry-after"]) > 0
    assert seen.headers["content-type"] == "application/json" and nothing_happened(gateway)
