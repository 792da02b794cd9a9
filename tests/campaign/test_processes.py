"""Stopping, reloading, starting without a database, running out of files, running for long."""

import os
import resource
import signal
import statistics
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.campaign.conftest import resident_mb, thread_count
from tests.campaign.site import Drivers, Producer, Seen, Site, ask, compare, site, until
from tests.fakes.script import Stall
from tests.servers.client import RawClient
from tests.servers.gunicorn import Gunicorn
from tests.servers.nginx import MISSING, Nginx

pytestmark = pytest.mark.sqlite_only  # It brings its own databases, so one run is enough.

SOAK_SECONDS = float(os.environ.get("SOAK_SECONDS", "60"))
DRAIN = 2


@pytest.fixture
def producer() -> Producer:
    return Producer()


@pytest.fixture
def place(producer: Producer) -> Iterator[Site]:
    with site("sqlite") as made:
        made.ollama.answer("/api/generate", producer)
        yield made


@pytest.fixture
def shared(producer: Producer) -> Iterator[Site]:
    """On PostgreSQL, which several gateways may share."""
    with site("postgresql") as made:
        made.ollama.answer("/api/generate", producer)
        yield made


class Streams:
    """Streams under way, each in a thread, numbered from `first`."""

    def __init__(self, place: Site, url: str, count: int, pieces: int, first: int = 1) -> None:
        self.seen: list[Seen] = []
        numbers = range(first, first + count)
        self._threads = [
            threading.Thread(
                target=lambda n=n: self.seen.append(ask(url, place.key, n, pieces, 0.05))
            )
            for n in numbers
        ]
        before = len(place.ollama.requests)
        for thread in self._threads:
            thread.start()
        place.ollama.wait_for(before + count, timeout=20)

    def wait(self) -> list[Seen]:
        for thread in self._threads:
            thread.join(60)
        return self.seen


# --- Stopping ------------------------------------------------------------------------------------


def test_sigterm_under_load_ends_every_stream_in_good_order(
    place: Site, producer: Producer
) -> None:
    """Long streams are ended with an error line, short ones finish, and nothing waits for it."""
    with place.gateway(DRAIN_SECONDS=str(DRAIN)) as server:
        long = Streams(place, server.url, 16, pieces=600)
        short = Streams(place, server.url, 16, pieces=10, first=100)
        time.sleep(0.3)
        asked = time.monotonic()
        server.signal(signal.SIGTERM)
        ended, finished = long.wait(), short.wait()
        assert server.stop(timeout=15) == 0
        took = time.monotonic() - asked

    print(f"\n32 streams under way; ended {took:.1f} s after SIGTERM (drain {DRAIN} s)")
    assert took < DRAIN + 5 and not place.open_holds()
    assert all(one.error == "gateway_stopping" and not one.done for one in ended), ended
    assert all(one.done and one.usage for one in finished), finished
    place.books_balance()
    rows = place.rows()
    # What had been delivered is paid for, counted here; never more than was produced.
    for one in ended:
        row = rows[one.request_id]
        assert row.outcome == "gateway_stopped", row
        assert one.pieces <= row.completion_tokens <= producer.produced[one.number].written
    compare(ended + finished, producer, rows)


def test_sigterm_while_the_model_server_is_silent_does_not_wait_for_it(place: Site) -> None:
    place.ollama.answer("/api/generate", Stall())
    with place.gateway(DRAIN_SECONDS="1") as server:
        streams = Streams(place, server.url, 16, pieces=1)
        asked = time.monotonic()
        server.signal(signal.SIGTERM)
        seen = streams.wait()
        assert server.stop(timeout=15) == 0
        took = time.monotonic() - asked

    print(f"\n16 silent requests; ended {took:.1f} s after SIGTERM (drain 1 s)")
    assert took < 6 and {one.status for one in seen} == {503}
    place.books_balance()
    assert {(row.outcome, row.pico) for row in place.rows().values()} == {("gateway_stopped", 0)}


def test_a_reload_under_load_fails_no_short_request(place: Site, producer: Producer) -> None:
    with place.gateway(DRAIN_SECONDS="10") as server:
        with Drivers(lambda: server.url, place.key, 6, lambda: (3, 0.01)) as drivers:
            streams = Streams(place, server.url, 4, pieces=60, first=10**6)
            for _ in range(3):
                before = set(server.worker_pids())
                server.signal(signal.SIGHUP)
                until(lambda old=before: len(set(server.worker_pids()) - old) == 2, 20)
                time.sleep(1)
        long = streams.wait()

    told = Counter(one.error or "done" for one in drivers.seen)
    print(
        f"\n3 reloads; short requests {dict(told)}; long streams {sum(s.done for s in long)} of 4"
    )
    assert set(told) == {"done"} and all(one.done for one in long)
    place.books_balance()
    compare(drivers.seen + long, producer, place.rows())


class TwoBehindNginx(Nginx):
    """The recommended file with a second server in it."""

    def __init__(self, ports: list[int]) -> None:
        super().__init__(ports[0])
        self._ports = ports

    def _adapted(self, text: str) -> str:
        text = super()._adapted(text)
        both = " ".join(f"server 127.0.0.1:{port};" for port in self._ports)
        return text.replace(f"server 127.0.0.1:{self._gateway};", both, 1)

    def take_out(self, port: int | None) -> None:
        """Mark an instance as down, or none, and reload: what is under way goes on."""
        conf = self._home / "gateway.conf"
        text = conf.read_text().replace(" down;", ";")
        conf.write_text(text.replace(f":{port};", f":{port} down;"))
        self._process.send_signal(signal.SIGHUP)
        time.sleep(1)


@pytest.mark.skipif(bool(MISSING), reason=MISSING)
def test_a_rolling_restart_of_two_instances_fails_no_short_request(
    shared: Site, producer: Producer
) -> None:
    """Behind nginx, as docs/operations.md says for two."""
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


def test_it_starts_without_its_database_says_so_and_recovers(shared: Site) -> None:
    assert shared.postgres
    shared.postgres.go_down()
    with shared.gateway() as server:
        assert (status(server, "/healthz"), status(server, "/readyz")) == (200, 503)
        refused = ask(server.url, shared.key, 1)
        shared.postgres.come_up()
        began = time.monotonic()
        until(lambda: status(server, "/readyz") == 200, 10)
        until(lambda: ask(server.url, shared.key, 2).done, 10)
        print(f"\nready {time.monotonic() - began:.1f} s after the database")

    assert refused.status == 503 and refused.retry_after
    shared.books_balance()


def sockets(pid: int) -> set[str]:
    """The sockets that a process holds, by their number in the kernel."""
    found = set()
    for link in Path(f"/proc/{pid}/fd").iterdir():
        try:
            target = os.readlink(link)
        except OSError:
            continue
        if target.startswith("socket:"):
            found.add(target)
    return found


def test_nothing_but_the_listening_socket_is_shared_over_the_fork(shared: Site) -> None:
    assert shared.postgres
    with (
        shared.gateway() as server,
        Drivers(lambda: server.url, shared.key, 8, lambda: (20, 0.02)),
    ):
        time.sleep(1.5)
        one, other = (sockets(pid) for pid in server.worker_pids())
        master = sockets(server.pid)

    # Connections to the database, to clients and to the model server are each one process's own.
    assert len(one & other) == 1 and one & other == one & master == other & master
    assert len(one) > 1 and len(other) > 1


# --- Limits --------------------------------------------------------------------------------------


def test_running_out_of_files_refuses_some_and_recovers(place: Site, producer: Producer) -> None:
    """64 files for each worker, and a hundred who ask at once."""
    with place.gateway(GATEWAY_THREADS="128") as server:
        for pid in server.worker_pids():
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (64, 64))
        with Drivers(lambda: server.url, place.key, 100, lambda: (20, 0.05)) as drivers:
            time.sleep(4)
        until(lambda: ask(server.url, place.key, 10**6).done, 20)

    told = Counter(one.error or "done" for one in drivers.seen)
    print(f"\n64 files, 100 clients: {dict(told)}")
    assert told["done"]
    place.books_balance()
    # Where neither the database nor the journal can be opened an answer ends without `usage`:
    # nothing is promised for it, but nothing is billed beyond what was produced either.
    rows = place.rows()
    told_nothing = [one for one in drivers.seen if one.done and not one.usage]
    for one in told_nothing:
        assert rows.pop(one.request_id).completion_tokens <= 20
    print(f"{len(told_nothing)} of them without usage")
    promised = [one for one in drivers.seen if one not in told_nothing]
    compare(
        promised,
        producer,
        {one.request_id: rows[one.request_id] for one in promised if one.request_id in rows},
    )


def test_a_soak_at_full_slots_leaves_nothing_behind(place: Site) -> None:
    slots = 32
    with place.gateway(GATEWAY_THREADS=str(slots // 2)) as server:
        with Drivers(lambda: server.url, place.key, slots, lambda: (20, 0.02)) as drivers:
            time.sleep(min(10, SOAK_SECONDS / 4))  # Every slot has been used by then.
            workers = server.worker_pids()
            samples = []
            deadline = time.monotonic() + SOAK_SECONDS
            while time.monotonic() < deadline:
                samples.append([sample(pid) for pid in workers])
                time.sleep(1)
        assert server.worker_pids() == workers, "a worker was replaced"
        idle = until(lambda: not place.open_holds(), 10)

    assert idle and all(one.done for one in drivers.seen)
    third = len(samples) // 3
    for number, worker in enumerate(workers):
        first = typical(row[number] for row in samples[:third])
        last = typical(row[number] for row in samples[-third:])
        print(f"\nworker {worker}: RSS, files, threads {first} at first, {last} at last", end=" ")
        assert last[0] <= first[0] * 1.05 + 1 and last[2] <= first[2] + 2
        # Files come and go with the streams; what leaks would be there at the end.
        assert last[1] <= first[1] * 1.2 + 5
    print(f"\n{len(drivers.seen)} streams in {SOAK_SECONDS:.0f} s")
    place.books_balance()
    held = place.query("SELECT sum(held) FROM billing_budget")
    assert int(held[0][0]) == 0 and len(place.rows()) == len(drivers.seen)


def sample(pid: int) -> tuple[float, int, int]:
    return resident_mb(pid), len(os.listdir(f"/proc/{pid}/fd")), thread_count(pid)


def typical(samples: Iterator[tuple[float, int, int]]) -> tuple[float, float, float]:
    memory, files, threads = zip(*samples, strict=True)
    return (
        round(statistics.median(memory), 1),
        statistics.median(files),
        statistics.median(threads),
    )
