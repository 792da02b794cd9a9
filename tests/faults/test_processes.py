"""Stop, reload, restart one after the other, start without a database."""

import contextlib
import os
import signal
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fakes.script import Stall
from tests.faults.conftest import ways
from tests.faults.load import Streams, whole_with_usage
from tests.harness.deployment import (
    Deployment,
    Drivers,
    Producer,
    Row,
    Seen,
    ask,
    compare,
    deploy,
    until,
)
from tests.servers.client import RawClient
from tests.servers.gunicorn import Gunicorn
from tests.servers.nginx import MISSING, Nginx

pytestmark = pytest.mark.once  # It brings its own databases, so one run is enough.

DRAIN = 2


@pytest.fixture
def producer() -> Producer:
    return Producer()


@pytest.fixture
def deployment(producer: Producer) -> Iterator[Deployment]:
    with deploy("sqlite") as made:
        made.ollama.answer("/api/generate", producer)
        yield made


@pytest.fixture
def shared(producer: Producer) -> Iterator[Deployment]:
    """A deployment on PostgreSQL, which several gateways may share."""
    with deploy("postgresql") as made:
        made.ollama.answer("/api/generate", producer)
        yield made


@pytest.fixture(params=ways())
def way(request: pytest.FixtureRequest) -> bool:
    """Whether nginx is in front."""
    return bool(request.param)


@contextlib.contextmanager
def front(server: Gunicorn, way: bool) -> Iterator[str]:
    """The URL that clients call."""
    if not way:
        yield server.url
        return
    with Nginx(server.port) as nginx:
        yield nginx.url


# --- Stopping ------------------------------------------------------------------------------------


def test_sigterm_under_load_ends_every_stream_in_good_order(
    deployment: Deployment, producer: Producer, way: bool
) -> None:
    """Long streams end with an error line, short ones finish, and nothing is left to settle."""
    with deployment.gateway(DRAIN_SECONDS=str(DRAIN)) as server, front(server, way) as url:
        long = Streams(deployment, url, 16, pieces=600)
        short = Streams(deployment, url, 16, pieces=10)
        time.sleep(0.3)
        asked = time.monotonic()
        server.signal(signal.SIGTERM)
        ended, finished = long.wait(), short.wait()
        assert server.stop(timeout=15) == 0
        took = time.monotonic() - asked

    print(f"\n32 streams under way; ended {took:.1f} s after SIGTERM (drain {DRAIN} s)")
    assert took < DRAIN + 20 and not deployment.open_holds()
    assert all(one.error == "gateway_stopping" and not one.done for one in ended), ended
    whole_with_usage(finished)
    deployment.books_balance()
    stopped_streams_are_paid_for(ended, producer, deployment.rows())
    compare(ended + finished, producer, deployment.rows())


def stopped_streams_are_paid_for(
    ended: list[Seen], producer: Producer, rows: dict[str, Row]
) -> None:
    """What had been delivered is billed, counted here, and never more than was produced."""
    for one in ended:
        row = rows[one.request_id]
        assert row.outcome == "gateway_stopped", row
        assert one.pieces <= row.completion_tokens <= producer.produced[one.number].written


def test_sigterm_while_the_model_server_is_silent_does_not_wait_for_it(
    deployment: Deployment, way: bool
) -> None:
    deployment.ollama.answer("/api/generate", Stall())
    with deployment.gateway(DRAIN_SECONDS="1") as server, front(server, way) as url:
        streams = Streams(deployment, url, 16, pieces=1)
        asked = time.monotonic()
        server.signal(signal.SIGTERM)
        seen = streams.wait()
        assert server.stop(timeout=15) == 0
        took = time.monotonic() - asked

    print(f"\n16 silent requests; ended {took:.1f} s after SIGTERM (drain 1 s)")
    assert took < 30
    assert {(one.status, one.error) for one in seen} == {(503, "gateway_stopping")}, seen
    deployment.books_balance()
    assert [(row.outcome, row.units) for row in deployment.rows().values()] == [
        ("gateway_stopped", 0)
    ] * 16


def reload(server: Gunicorn) -> None:
    before = set(server.worker_pids())
    server.signal(signal.SIGHUP)
    until(lambda: len(set(server.worker_pids()) - before) == 2, 60)


def test_a_reload_under_load_fails_no_short_request(
    deployment: Deployment, producer: Producer, way: bool
) -> None:
    with deployment.gateway(DRAIN_SECONDS="10") as server, front(server, way) as url:
        with Drivers(lambda: url, deployment.key, 6, lambda: (3, 0.01)) as drivers:
            streams = Streams(deployment, url, 4, pieces=60)
            for _ in range(3):
                reload(server)
                time.sleep(1)
        long = streams.wait()

    told = Counter(one.error or "done" for one in drivers.seen)
    print(
        f"\n3 reloads; short requests {dict(told)}; long streams {sum(s.done for s in long)} of 4"
    )
    assert set(told) == {"done"} and told["done"] > 50
    whole_with_usage(long)
    deployment.books_balance()
    compare(drivers.seen + long, producer, deployment.rows())


def test_a_reload_ends_streams_that_are_longer_than_the_drain_and_says_so(
    deployment: Deployment, producer: Producer, way: bool
) -> None:
    with deployment.gateway(DRAIN_SECONDS=str(DRAIN)) as server, front(server, way) as url:
        long = Streams(deployment, url, 8, pieces=600)
        with Drivers(lambda: url, deployment.key, 4, lambda: (3, 0.01)) as drivers:
            asked = time.monotonic()
            reload(server)
            ended = long.wait()
            took = time.monotonic() - asked

    print(f"\n8 long streams ended {took:.1f} s after SIGHUP (drain {DRAIN} s)")
    assert DRAIN - 1 < took < DRAIN + 20
    assert all(one.error == "gateway_stopping" and not one.done for one in ended), ended
    assert drivers.seen
    whole_with_usage(drivers.seen)
    deployment.books_balance()
    stopped_streams_are_paid_for(ended, producer, deployment.rows())
    compare(ended + drivers.seen, producer, deployment.rows())


class TwoBehindNginx(Nginx):
    """deploy/nginx.conf with a second server."""

    def __init__(self, ports: list[int]) -> None:
        super().__init__(ports[0])
        self._ports = ports

    def _adapted(self, text: str) -> str:
        text = super()._adapted(text)
        both = " ".join(f"server 127.0.0.1:{port};" for port in self._ports)
        return text.replace(f"server 127.0.0.1:{self._gateway};", both, 1)

    def take_out(self, port: int | None) -> None:
        """Mark one instance as down, or none, and reload; running requests go on."""
        conf = self._home / "gateway.conf"
        text = conf.read_text().replace(" down;", ";")
        conf.write_text(text.replace(f":{port};", f":{port} down;"))
        self._process.send_signal(signal.SIGHUP)
        time.sleep(1)


@pytest.mark.skipif(bool(MISSING), reason=MISSING)
def test_a_rolling_restart_of_two_instances_fails_no_short_request(
    shared: Deployment, producer: Producer
) -> None:
    """Behind nginx, by the steps of docs/operations.md."""
    instances = [shared.gateway(DRAIN_SECONDS="5").__enter__() for _ in range(2)]
    try:
        with (
            TwoBehindNginx([one.port for one in instances]) as front,
            Drivers(lambda: front.url, shared.key, 6, lambda: (3, 0.01)) as drivers,
        ):
            for number in (0, 1, 0, 1):
                port = instances[number].port
                front.take_out(port)
                assert instances[number].stop(timeout=15) == 0
                instances[number] = shared.gateway(port=port, DRAIN_SECONDS="5").__enter__()
                front.take_out(None)
    finally:
        for instance in instances:
            instance.stop()

    told = Counter(one.error or "done" for one in drivers.seen)
    print(f"\n4 restarts behind nginx; short requests {dict(told)}")
    assert set(told) == {"done"}, [one for one in drivers.seen if not one.done]
    shared.books_balance()
    compare(drivers.seen, producer, shared.rows())


# --- Starting ------------------------------------------------------------------------------------


def status(server: Gunicorn, path: str) -> int:
    with RawClient(server.url, timeout=15) as client:
        client.get(path)
        return client.read_head().status


def test_a_gateway_starts_without_its_database_reports_it_and_recovers(shared: Deployment) -> None:
    assert shared.postgres
    shared.postgres.go_down()
    with shared.gateway() as server:
        assert (status(server, "/healthz"), status(server, "/readyz")) == (200, 503)
        refused = ask(server.url, shared.key, 1)
        shared.postgres.come_up()
        began = time.monotonic()
        until(lambda: status(server, "/readyz") == 200, 60)
        until(lambda: ask(server.url, shared.key, 2).done, 60)
        print(f"\nready {time.monotonic() - began:.1f} s after the database")

    assert refused.status == 503 and refused.retry_after
    shared.books_balance()


def sockets(pid: int) -> set[str]:
    """The sockets of a process, by inode."""
    found = set()
    for link in Path(f"/proc/{pid}/fd").iterdir():
        try:
            target = os.readlink(link)
        except OSError:
            continue
        if target.startswith("socket:"):
            found.add(target)
    return found


def test_workers_share_only_the_listening_socket(shared: Deployment) -> None:
    assert shared.postgres
    with (
        shared.gateway() as server,
        Drivers(lambda: server.url, shared.key, 8, lambda: (20, 0.02)),
    ):
        time.sleep(1.5)
        one, other = (sockets(pid) for pid in server.worker_pids())
        master = sockets(server.pid)

    # No process shares a connection to the database, to a client or to the model server.
    assert len(one & other) == 1 and one & other == one & master == other & master
    assert len(one) > 1 and len(other) > 1
