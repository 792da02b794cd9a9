"""`make promises`: measure the figures of docs/promises.md and print them next to their targets.

Real gunicorn, a fake Ollama, databases of its own, loopback; eleven minutes. Fewer kills and
restarts than `make test-faults`, and SQLite where the database makes no difference.
"""

import random
import signal
import statistics
import threading
import time
from collections import Counter
from collections.abc import Callable

from bench.figures import Figure, Figures, within
from bench.isolation import isolation
from bench.proofs import NOT_PROMISED, PROOFS
from tests.fakes.script import Stall, Wait, tokens
from tests.faults.conftest import percentile, resident_mb
from tests.faults.test_crash_loop import FAULT_CHANCE, STREAMS, Victim, kill_until
from tests.harness.deployment import (
    Deployment,
    Drivers,
    Producer,
    ask,
    compare,
    deploy,
    issue_key,
    until,
)
from tests.servers.client import RawClient
from tests.servers.gunicorn import Gunicorn, manage

KILLS, LEAVERS, FIRSTS, RESTARTS, IN_FLIGHT, REFUSALS = 40, 25, 150, 5, 64, 50
PATH = "/api/generate"


# --- Crashes --------------------------------------------------------------------------------------


def crashes(database: str) -> Figures:
    """P1, P2, P3, P21: kill -9 under eight streams, then compare the ledger, the client and the model server."""
    dice, producer = random.Random(1), Producer()
    with deploy(database) as deployment:
        deployment.ollama.answer(PATH, producer)
        victim = Victim(deployment, dice, FAULT_CHANCE)
        try:
            shape = lambda: (dice.randint(1, 25), dice.choice([0, 0.01]))  # noqa: E731
            with Drivers(lambda: victim.server.url, deployment.key, STREAMS, shape) as drivers:
                kill_until(victim, dice, KILLS // 2)
            victim.disarm()
            took = deployment.books_balance(60)
        finally:
            victim.server.stop()
        rows = deployment.rows()  # Fails where a request has two.
        compare(drivers.seen, producer, rows)
    kills, done = victim.deaths.total(), sum(one.done for one in drivers.seen)
    lost, late = f"0 of {done}, {kills} kills", f"{took:.1f} s after the last kill"
    return [
        Figure("P1", f"a seen end is on record, {database}", "0 lost", lost, True),
        Figure("P2", f"nothing is billed twice, {database}", "1 row each", "1 row each", True),
        Figure("P3", f"orphans settled, {database}", "30 s", late, took <= 30),
        Figure("P21", f"books balance, {database}", "0 differences", "0 differences", True),
    ]


# --- Credit ---------------------------------------------------------------------------------------


def credit(deployment: Deployment, server: Gunicorn) -> Figures:
    """P4: fifty at once against credit for some."""
    cost = (2 * 103 + 4 * 16) / 1_000_000  # About what one takes; more than one is held for it.
    poor = manage(deployment.env, "create_account", "Poor", "--credit", f"{cost * 40:f}")
    assert poor.returncode == 0, poor.stderr
    key = issue_key(deployment, "Poor")
    go_on, statuses = threading.Event(), Counter[int]()
    deployment.ollama.answer(PATH, Wait(go_on), tokens("ab"))
    threads = [
        threading.Thread(target=lambda n=n: statuses.update([ask(server.url, key, n, 16).status]))
        for n in range(50)
    ]
    for thread in threads:
        thread.start()
    until(lambda: statuses[402], 20)
    time.sleep(2)
    balance = 'SELECT max(spent + held - "limit") FROM billing_budget'
    beyond = int(deployment.query(balance)[0][0])
    go_on.set()
    for thread in threads:
        thread.join(60)
    measured = f"{statuses[200]} served, {statuses[402]} refused, {max(beyond, 0)} beyond"
    return [Figure("P4", "credit is never passed, 50 at once", "0 beyond", measured, beyond <= 0)]


# --- Disconnects and an unreachable model server -------------------------------------------------


def leaving(deployment: Deployment, server: Gunicorn) -> Figures:
    """P6: from the disconnect to the end of the model server's connection."""
    silent = [left_after(deployment, server, 0) for _ in range(LEAVERS)]
    streaming = [left_after(deployment, server, 2) for _ in range(LEAVERS)]
    return [
        within("P6", f"leaving stops the model, {name}, p99", percentile(seconds, 99), 1)
        for name, seconds in (("silent", silent), ("streaming", streaming))
    ]


def left_after(deployment: Deployment, server: Gunicorn, lines: int) -> float:
    script = [tokens(["x"] * lines, done=False)] if lines else []
    deployment.ollama.answer(PATH, *script, Stall(), times=1)
    before = len(deployment.ollama.requests)
    with RawClient(server.url) as client:
        client.post(PATH, {"model": "llama3", "prompt": "hi"}, key=deployment.key)
        received = deployment.ollama.wait_for(before + 1)[-1]
        if lines:
            client.read_head()
            for _ in range(lines):
                client.read_line()
    left = time.monotonic()
    assert received.left.wait(10)
    return (received.left_at or left) - left


def gone(deployment: Deployment, server: Gunicorn) -> Figures:
    """P8: a model server that refuses connections."""
    deployment.ollama.down()
    took = [ask(server.url, deployment.key, n) for n in range(20)]
    deployment.ollama.up()
    worst = max(one.seconds for one in took)
    assert {one.status for one in took} == {503}
    return [within("P8", "a dead Ollama is said at once, worst", worst, 0.2)]


# --- A full gateway -------------------------------------------------------------------------------


def full(deployment: Deployment, server: Gunicorn) -> Figures:
    """P9: requests while every thread of two workers has a stream."""
    go_on = threading.Event()
    deployment.ollama.answer(PATH, tokens("a", done=False), Wait(go_on), tokens("b"))
    with deployment.gateway(GATEWAY_WORKERS="2", GATEWAY_THREADS=str(STREAMS)) as small:
        busy = fill_threads(small, deployment.key, 2 * STREAMS)
        refused = [ask(small.url, deployment.key, n) for n in range(REFUSALS)]
        go_on.set()
        for client in busy:
            client.close()
    assert {(one.status, one.error) for one in refused} == {(503, "gateway_busy")}
    took = [one.seconds for one in refused]
    return [
        within("P9", f"full means a quick no, p{percent}", percentile(took, percent), 0.1)
        for percent in (50, 99)
    ]


def fill_threads(server: Gunicorn, key: str, count: int) -> list[RawClient]:
    """Start a stream on every thread. A worker without CPU for 50 ms rejects some; they retry."""
    busy: list[RawClient] = []
    for _ in range(20):
        asking = [RawClient(server.url) for _ in range(count - len(busy))]
        for client in asking:
            client.post(PATH, {"model": "llama3", "prompt": "hi"}, key=key)
        for client in asking:
            if client.read_head().status == 200:
                busy.append(client)
            else:
                client.close()
        if len(busy) == count:
            return busy
    raise AssertionError(f"{len(busy)} of {count} streams began")


# --- Overhead -------------------------------------------------------------------------------------


def overhead(deployment: Deployment, server: Gunicorn) -> Figures:
    """P13: the first chunk and the complete response, of the gateway and of the model server."""
    deployment.ollama.answer(PATH, tokens(["x"] * 500))
    ours, theirs = (
        [timed(url, deployment.key) for _ in range(FIRSTS)]
        for url in (server.url, deployment.ollama.url)
    )
    first = [one[0] for one in ours]
    bare = statistics.median(one[0] for one in theirs)
    middle, late = statistics.median(first) - bare, percentile(first, 99) - bare
    whole = statistics.median(one[1] for one in ours) - statistics.median(one[1] for one in theirs)
    token = whole / 500
    return [
        within("P13", "added to the first line, p50", middle, 0.01),
        within("P13", "added to the first line, p99", late, 0.03),
        within("P13", "added for each token", token, 0.001),
    ]


def timed(url: str, key: str) -> tuple[float, float]:
    began = time.monotonic()
    with RawClient(url) as client:
        client.post(PATH, {"model": "llama3", "prompt": "hi"}, key=key)
        client.read_head()
        client.read_line()
        first = time.monotonic() - began
        client.read_all()
    return first, time.monotonic() - began


def memory(deployment: Deployment, server: Gunicorn) -> Figures:
    """P23: the growth of the workers while many streams run."""
    pids, go_on = server.worker_pids(), threading.Event()
    before = sum(map(resident_mb, pids))
    deployment.ollama.answer(PATH, tokens("ab", done=False), Wait(go_on), tokens("cd"))
    threads = [
        threading.Thread(target=ask, args=(server.url, deployment.key, n)) for n in range(IN_FLIGHT)
    ]
    for thread in threads:
        thread.start()
    until(lambda: deployment.ollama.in_flight >= IN_FLIGHT, 30)
    each = (sum(map(resident_mb, pids)) - before) / IN_FLIGHT
    go_on.set()
    for thread in threads:
        thread.join(60)
    return [Figure("P23", "memory of one stream", "1 MB", f"{each:.2f} MB", each <= 1)]


# --- Restarts -------------------------------------------------------------------------------------


def reload(deployment: Deployment, server: Gunicorn) -> Figures:
    """P14: HUP during short requests."""
    deployment.ollama.answer(PATH, tokens("abc"))
    with Drivers(lambda: server.url, deployment.key, 6, lambda: (3, 0.0)) as drivers:
        old = set(server.worker_pids())
        server.signal(signal.SIGHUP)
        until(lambda: len(set(server.worker_pids()) - old) == 2, 20)
        time.sleep(1)
    failed = sum(not one.done for one in drivers.seen)
    measured = f"{failed} of {len(drivers.seen)}"
    return [Figure("P14", "a reload fails no short request", "0", measured, not failed)]


def database_restarts() -> Figures:
    """P15: PostgreSQL stopped and started under eight streams."""
    producer = Producer()
    with deploy("postgresql") as deployment, deployment.gateway() as server:
        assert deployment.postgres
        deployment.ollama.answer(PATH, producer)
        with Drivers(lambda: server.url, deployment.key, STREAMS, lambda: (20, 0.02)) as drivers:
            for _ in range(RESTARTS):
                time.sleep(1.5)
                deployment.postgres.restart()
            time.sleep(2)
        deployment.books_balance()
        compare(drivers.seen, producer, deployment.rows())
    cut = sum(not one.done and one.status == 200 for one in drivers.seen)
    done = sum(one.done for one in drivers.seen)
    measured = f"0 rows lost or doubled of {done}; {cut} streams cut"
    return [Figure("P15", f"{RESTARTS} database restarts lose nothing", "0", measured, not cut)]


def revoking(deployment: Deployment, server: Gunicorn) -> Figures:
    """P20: from the end of the command to the first 401, of both workers, and to the end of
    the running responses of the key."""
    deployment.ollama.answer(PATH, tokens("abc"), times=1)
    key = issue_key(deployment)
    number = int(deployment.query("SELECT max(id) FROM accounts_apikey")[0][0])
    assert ask(server.url, key, 1).done
    deployment.ollama.answer(PATH, tokens(["x"] * 2000, pause=0.01))
    ended: list[float] = []

    def run(n: int) -> None:
        assert ask(server.url, key, n, pieces=2000).error == "key_revoked"
        ended.append(time.monotonic())

    threads = [threading.Thread(target=run, args=(n,)) for n in range(STREAMS)]
    for thread in threads:
        thread.start()
    until(lambda: deployment.ollama.in_flight == STREAMS)
    done = manage(deployment.env, "revoke_key", str(number))
    began = time.monotonic()
    assert done.returncode == 0, done.stderr
    late = sum(ask(server.url, key, n).status != 401 for n in range(20))
    took = time.monotonic() - began
    for thread in threads:
        thread.join(30)
    worst = max(0.0, max(ended) - began) if len(ended) == STREAMS else float("inf")
    measured = f"{late} of 20 served in {took:.1f} s after"
    return [
        Figure("P20", "revoked means revoked", "1 s", measured, not late),
        within("P20", f"a revoked key's {STREAMS} streams end", worst, 1),
    ]


def main() -> int:
    found: Figures = []

    def note(figures: Figures) -> None:
        for figure in figures:
            print(figure, flush=True)
        found.extend(figures)

    with deploy("sqlite") as deployment, deployment.gateway() as server:
        ask(server.url, deployment.key, 1)
        parts: list[Callable[[Deployment, Gunicorn], Figures]]
        parts = [overhead, memory, leaving, gone, full, credit, revoking, reload]
        for part in parts:
            deployment.ollama.reset()
            note(part(deployment, server))
    note(database_restarts())
    for database in ("sqlite", "postgresql"):
        note(crashes(database))
    note(isolation())
    for proof in PROOFS:
        note([proof.run()])
    for number, promise in NOT_PROMISED.items():
        print(f"{number:<4} none   {promise:<44} not promised yet, see docs/promises.md")
    return sum(not figure.kept for figure in found)


if __name__ == "__main__":
    raise SystemExit(main())
