"""Too few files, idle connections, full slots for a long time: requests are rejected, no worker
spins, and the gateway recovers.
"""

import contextlib
import os
import resource
import socket
import statistics
import time
from collections import Counter
from collections.abc import Iterator

import pytest

from tests.faults.conftest import resident_mb, thread_count
from tests.harness.deployment import Deployment, Drivers, Producer, ask, compare, deploy, until
from tests.servers.gunicorn import Gunicorn

pytestmark = pytest.mark.once  # It brings its own databases, so one run is enough.

SOAK_SECONDS = float(os.environ.get("SOAK_SECONDS", "60"))
FILES = 64


@pytest.fixture
def producer() -> Producer:
    return Producer()


@pytest.fixture
def deployment(producer: Producer) -> Iterator[Deployment]:
    with deploy("sqlite") as made:
        made.ollama.answer("/api/generate", producer)
        yield made


def test_running_out_of_files_refuses_some_and_recovers(
    deployment: Deployment, producer: Producer
) -> None:
    """64 files for each worker, and a hundred clients at once."""
    with deployment.gateway(GATEWAY_THREADS="128") as server:
        allow_files(server, FILES)
        with Drivers(lambda: server.url, deployment.key, 100, lambda: (20, 0.05)) as drivers:
            time.sleep(4)
        until(lambda: ask(server.url, deployment.key, 10**6).done, 60)

    told = Counter(one.error or "done" for one in drivers.seen)
    print(f"\n64 files, 100 clients: {dict(told)}")
    assert told["done"]
    deployment.books_balance()
    # Where neither the database nor the journal can be opened an answer ends without `usage`:
    # nothing is promised for it, but nothing is billed beyond what was produced either.
    rows = deployment.rows()
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


def test_idle_connections_beyond_the_file_limit_make_no_worker_spin(
    deployment: Deployment, producer: Producer
) -> None:
    """256 silent connections, where each worker may open 64 files."""
    with deployment.gateway() as server:
        first = ask(server.url, deployment.key, 10**6)
        allow_files(server, FILES)
        workers = server.worker_pids()
        with idle_connections(server.port, 4 * FILES):
            time.sleep(1)
            before, began = processor_seconds(server), time.monotonic()
            time.sleep(2)
            used = processor_seconds(server) - before
            share = used / (time.monotonic() - began)
            meanwhile = [ask(server.url, deployment.key, 10**6 + n, timeout=3) for n in range(1, 4)]
        back = until(
            lambda: [s for s in [ask(server.url, deployment.key, 10**6 + 9)] if s.done], 20
        )
        stayed = server.worker_pids() == workers

    told = Counter(one.error or str(one.status) for one in meanwhile)
    print(f"\n{4 * FILES} idle connections, {FILES} files: {share:.0%} of a core;", end=" ")
    print(f"asked meanwhile: {dict(told)}; the same workers: {stayed}")
    assert share < 0.5
    assert not any(one.status == 500 for one in meanwhile), meanwhile
    deployment.books_balance()
    compare([first, *meanwhile, *back], producer, deployment.rows())


def allow_files(server: Gunicorn, count: int) -> None:
    """Limit the workers that run, and those that would replace them."""
    for pid in [*server.worker_pids(), server.pid]:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (count, count))


def is_calm(server: Gunicorn) -> bool:
    before = server.worker_pids()
    time.sleep(2)
    return len(before) == 2 and server.worker_pids() == before


@contextlib.contextmanager
def idle_connections(port: int, count: int) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        for _ in range(count):
            sock = stack.enter_context(socket.socket())
            sock.settimeout(2)
            sock.connect(("127.0.0.1", port))
        yield


def processor_seconds(server: Gunicorn) -> float:
    """The processor time of the server and its workers, including ended ones."""
    ticks = 0
    for pid in [server.pid, *server.worker_pids()]:
        with contextlib.suppress(OSError), open(f"/proc/{pid}/stat") as file:
            fields = file.read().rpartition(")")[2].split()
            # utime and stime; of the master also those of its children that have ended.
            ticks += sum(map(int, fields[11:15] if pid == server.pid else fields[11:13]))
    return ticks / os.sysconf("SC_CLK_TCK")


def test_a_soak_at_full_slots_leaves_nothing_behind(deployment: Deployment) -> None:
    slots = 32
    with deployment.gateway(GATEWAY_THREADS=str(slots // 2)) as server:
        with Drivers(lambda: server.url, deployment.key, slots, lambda: (20, 0.02)) as drivers:
            time.sleep(min(10, SOAK_SECONDS / 4))  # Every slot has been used by then.
            workers = server.worker_pids()
            samples = []
            deadline = time.monotonic() + SOAK_SECONDS
            while time.monotonic() < deadline:
                samples.append([sample(pid) for pid in workers])
                time.sleep(1)
        assert server.worker_pids() == workers, "a worker was replaced"
        idle = until(lambda: not deployment.open_holds(), 60)

    assert idle
    # There are as many clients as threads: one that asks while a thread ends its last response may
    # be told that all are busy.
    busy = [one for one in drivers.seen if not one.done]
    assert all((one.status, one.error) == (503, "gateway_busy") for one in busy), busy
    assert len(drivers.seen) - len(busy) > 10 * slots
    third = len(samples) // 3
    for number, worker in enumerate(workers):
        first = typical(row[number] for row in samples[:third])
        last = typical(row[number] for row in samples[-third:])
        print(f"\nworker {worker}: RSS, files, threads {first} at first, {last} at last", end=" ")
        assert last[0] <= first[0] * 1.05 + 1 and last[2] <= first[2] + 2
        # Files come and go with the streams; what leaks would be there at the end.
        assert last[1] <= first[1] * 1.2 + 5
    print(f"\n{len(drivers.seen)} streams in {SOAK_SECONDS:.0f} s, {len(busy)} of them refused")
    deployment.books_balance()
    held = deployment.query("SELECT sum(held) FROM billing_budget")
    assert int(held[0][0]) == 0 and len(deployment.rows()) == len(drivers.seen) - len(busy)


def sample(pid: int) -> tuple[float, int, int]:
    return resident_mb(pid), len(os.listdir(f"/proc/{pid}/fd")), thread_count(pid)


def typical(samples: Iterator[tuple[float, int, int]]) -> tuple[float, float, float]:
    memory, files, threads = zip(*samples, strict=True)
    return (
        round(statistics.median(memory), 1),
        statistics.median(files),
        statistics.median(threads),
    )
