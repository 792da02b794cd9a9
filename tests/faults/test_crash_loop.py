"""kill -9, many times, at random moments and at chosen ones; then three accounts are compared: what
clients received, what the model server produced, and what the ledger says.

KILLS scales it (150, over both databases); SEED repeats it.
"""

import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.faulty_wsgi import POINTS
from tests.harness.deployment import DATABASES, Deployment, Drivers, Producer, compare, deploy
from tests.servers.gunicorn import Gunicorn, manage

pytestmark = pytest.mark.once  # It brings both databases itself, so one run is enough.

KILLS = int(os.environ.get("KILLS", "160"))
SEED = os.environ.get("SEED") or str(random.SystemRandom().randrange(10**6))
STREAMS = 8
LONGEST = 240  # seconds of killing; a machine too slow for KILLS fails, saying so
SETTLED_WITHIN = 60
# The whole server dies this often; else one worker does.
WHOLE_SERVER = 0.12
FAULT_CHANCE = 0.02
# A process that exits there leaves a hold of which nothing else is known.
LEFT_OPEN = ("after_hold", "before_settle", "in_settle")


class Victim:
    """A gateway that is killed, from outside or by itself, and started again."""

    def __init__(
        self, deployment: Deployment, dice: random.Random, chance: float, points: str = ""
    ) -> None:
        self.log = deployment.home / "faults.log"
        self._place, self._dice = deployment, dice
        self._faults = {
            "FAULTS": points or ",".join(POINTS),
            "FAULT_CHANCE": str(chance),
            "FAULT_LOG": str(self.log),
            "FAULT_SEED": str(dice.random()),
        }
        self.by_us = 0
        self.server = self._start()

    def _start(self, port: int | None = None) -> Gunicorn:
        app = "tests.faults.faulty_wsgi"
        return self._place.gateway(app, port, **self._faults).__enter__()

    @property
    def deaths(self) -> Counter[str]:
        named = self.log.read_text().split() if self.log.exists() else []
        return Counter(named) + Counter({"from outside": self.by_us})

    def kill_worker(self) -> None:
        pids = self.server.worker_pids()
        if pids:
            os.kill(self._dice.choice(pids), signal.SIGKILL)
            self.by_us += 1

    def kill_all(self) -> None:
        """Kill the whole server, as a power cut does, and start it on the same port."""
        self.by_us += len(self.server.worker_pids())
        self.server.kill()
        self.server = self._start(self.server.port)

    def disarm(self) -> None:
        """Replace it by a gateway without faults, which settles what is left."""
        self.server.kill()
        self.server = self._place.gateway(port=self.server.port).__enter__()


@pytest.fixture
def dice() -> random.Random:
    print(f"\nSEED={SEED}", end=" ")
    return random.Random(SEED)


@pytest.fixture(params=DATABASES)
def deployment(request: pytest.FixtureRequest) -> Iterator[Deployment]:
    with deploy(request.param) as made:
        yield made


def kill_until(victim: Victim, dice: random.Random, kills: int) -> None:
    deadline = time.monotonic() + LONGEST
    while victim.deaths.total() < kills:
        assert time.monotonic() < deadline, f"only {victim.deaths} in {LONGEST} s"
        time.sleep(dice.uniform(0.1, 0.9))
        victim.kill_all() if dice.random() < WHOLE_SERVER else victim.kill_worker()


def test_billed_is_what_clients_received_and_the_model_server_produced(
    deployment: Deployment, dice: random.Random
) -> None:
    producer = Producer()
    deployment.ollama.answer("/api/generate", producer)
    victim = Victim(deployment, dice, FAULT_CHANCE)

    def shape() -> tuple[int, float]:
        return dice.randint(1, 25), dice.choice([0, 0.005, 0.03])

    try:
        with Drivers(lambda: victim.server.url, deployment.key, STREAMS, shape) as drivers:
            kill_until(victim, dice, KILLS // 2)
        victim.disarm()
        took = deployment.books_balance(SETTLED_WITHIN)
    finally:
        victim.server.stop()

    rows = deployment.rows()
    told = Counter(one.error or "done" for one in drivers.seen)
    print(f"{victim.deaths.total()} kills {dict(victim.deaths)}; clients: {dict(told)};", end=" ")
    print(f"{len(rows)} rows; the last hold ended {took:.1f} s after the last kill")
    assert victim.deaths.total() >= KILLS // 2 and told["done"]
    compare(drivers.seen, producer, rows)


@pytest.mark.parametrize("point", [point for point in POINTS if point != "in_replay"])
def test_a_crash_at_a_chosen_moment_bills_what_clients_received(
    deployment: Deployment, dice: random.Random, point: str
) -> None:
    """Each point is met for certain, which a random kill cannot guarantee."""
    producer = Producer()
    deployment.ollama.answer("/api/generate", producer)
    # Recovery needs an abandoned hold: a crash at another point leaves one.
    points = "after_settle,before_settle,in_sweeper" if point == "in_sweeper" else point
    victim = Victim(deployment, dice, 0.3, points)
    try:
        with Drivers(lambda: victim.server.url, deployment.key, 4, lambda: (3, 0.0)) as drivers:
            wait_for_death(victim, point)
        victim.disarm()
        deployment.books_balance(SETTLED_WITHIN)
    finally:
        victim.server.stop()

    rows = deployment.rows()
    outcomes = Counter(row.outcome for row in rows.values())
    print(f"\n{point}: {victim.deaths.total()} deaths; rows {dict(outcomes)}", end=" ")
    # No process reported how the others ended, so they must not be recorded as complete.
    assert set(outcomes) <= {"complete", "expired"}
    if point in LEFT_OPEN:
        assert outcomes["expired"]
    compare(drivers.seen, producer, rows)


def wait_for_death(victim: Victim, point: str) -> None:
    deadline = time.monotonic() + 40
    while not victim.deaths[point]:
        assert time.monotonic() < deadline, victim.deaths
        time.sleep(0.1)


def test_abandoned_holds_are_settled_in_time(deployment: Deployment) -> None:
    """With the default lease. Nobody runs a command: the next worker finds that their processes
    have exited.

    The time from the kill to the last settlement is printed.
    """
    producer = Producer()
    deployment.ollama.answer("/api/generate", producer)
    with (
        deployment.gateway(HOLD_LEASE_SECONDS="30") as server,
        Drivers(lambda: server.url, deployment.key, STREAMS, lambda: (200, 0.05)),
    ):
        deployment.ollama.wait_for(STREAMS)
        time.sleep(1)
        [one, other] = server.worker_pids()
        for pid in (one, other):
            server.kill_worker(pid)
        killed = time.monotonic()
        orphans = f"state = 'open' AND (worker LIKE '%/{one}-%' OR worker LIKE '%/{other}-%')"
        count = f"SELECT count(*) FROM billing_hold WHERE {orphans}"
        left = deployment.query(count)[0][0]
        while deployment.query(count)[0][0]:
            assert time.monotonic() - killed < SETTLED_WITHIN
            time.sleep(0.05)
        print(f"\n{left} orphans settled {time.monotonic() - killed:.1f} s after kill -9")
        deployment.ollama.cut()
        deployment.ollama.reset()
    assert left == STREAMS


def test_concurrent_recovery_settles_each_abandoned_hold_once(
    deployment: Deployment, tmp_path: Path
) -> None:
    """Four commands and two workers settle the same abandoned holds at once."""
    deployment.ollama.answer("/api/generate", Producer())
    with (
        deployment.gateway(HOLD_LEASE_SECONDS="600") as server,
        Drivers(lambda: server.url, deployment.key, STREAMS, lambda: (500, 0.05)) as drivers,
    ):
        deployment.ollama.wait_for(STREAMS)
        drivers._stopped.set()
        server.kill()
    assert deployment.open_holds() == STREAMS
    settled: list[str] = []
    sweepers = [threading.Thread(target=_sweep, args=(deployment, settled)) for _ in range(4)]
    for sweeper in sweepers:
        sweeper.start()
    with deployment.gateway():
        for sweeper in sweepers:
            sweeper.join(60)

    assert len(settled) == 4
    deployment.books_balance()
    assert len(deployment.rows()) == STREAMS


def _sweep(deployment: Deployment, settled: list[str]) -> None:
    done = manage(deployment.env, "settle_holds")
    assert done.returncode == 0, done.stderr
    settled.append(done.stdout)
