"""kill -9 in the middle of streams: no hold stays open, nothing is lost, nothing billed twice."""

import json
import threading
import time
from collections.abc import Iterator

import pytest

from billing import reconciliation
from billing.models import Hold, TokenUsage
from tests.fakes.ollama import FakeOllama
from tests.fakes.script import tokens
from tests.harness.callers import Caller, set_price
from tests.harness.gateway import DEADLINES, RunningGateway, eventually, gateway_env
from tests.servers.client import RawClient, Truncated
from tests.servers.gunicorn import Gunicorn, manage

STREAMS = 8
# So long that no sweeper finds the orphans before the command does: what proves a worker dead
# here is that its process is gone.
LONG_LEASE = {"HOLD_LEASE_SECONDS": "600"}


@pytest.fixture
def fragile(running: RunningGateway, transactional_db: None) -> Iterator[RunningGateway]:
    """A gateway of its own, since it will be killed."""
    with FakeOllama() as ollama:
        env = gateway_env(ollama, **(DEADLINES | LONG_LEASE))
        with Gunicorn(env) as server:
            yield RunningGateway(server, ollama, env)


class Reader(threading.Thread):
    """Reads one stream to its end, however it ends."""

    def __init__(self, gateway: RunningGateway, key: str) -> None:
        super().__init__()
        self.client: RawClient = gateway.client(timeout=20)
        self.client.post("/api/generate", {"model": "llama3", "prompt": "hi"}, key=key)
        self.saw_done = False
        self.request_id = ""
        self.start()

    def run(self) -> None:
        try:
            self.request_id = self.client.read_head().headers["x-request-id"]
            while (line := self.client.read_line()) is not None:
                self.saw_done = self.saw_done or json.loads(line).get("done") is True
        except (Truncated, ConnectionError, TimeoutError):
            pass
        finally:
            self.client.close()


def test_killed_workers_lose_nothing_and_bill_nothing_twice(
    fragile: RunningGateway, alice: Caller
) -> None:
    set_price("llama3", "0.002")
    fragile.ollama.answer("/api/generate", tokens("ab"), times=3)
    fragile.ollama.answer("/api/generate", tokens(["x"] * 500, pause=0.02))
    readers = [Reader(fragile, alice.secret) for _ in range(STREAMS)]
    fragile.ollama.wait_for(STREAMS)
    eventually(lambda: sum(reader.saw_done for reader in readers) == 3)
    time.sleep(0.3)

    for pid in fragile.server.worker_pids():
        fragile.server.kill_worker(pid)
    for reader in readers:
        reader.join(20)
    settled = manage(fragile.env, "settle_holds")

    assert settled.returncode == 0, settled.stderr
    assert not Hold.objects.filter(state="open").exists()
    assert TokenUsage.objects.count() == STREAMS
    finished = {reader.request_id for reader in readers if reader.saw_done}
    complete = {str(row.request_id) for row in TokenUsage.objects.filter(outcome="complete")}
    assert len(finished) == 3 and finished == complete
    assert manage(fragile.env, "settle_holds").returncode == 0
    reconciled = manage(fragile.env, "reconcile")
    assert reconciled.returncode == 0, reconciled.stdout


def test_orphans_are_settled_without_anybody_asking(gateway: RunningGateway, alice: Caller) -> None:
    """The lease is 3 seconds here; the worker that takes the dead one's place looks after them."""
    set_price("llama3", "0.002")
    gateway.ollama.answer("/api/generate", tokens(["x"] * 500, pause=0.02))
    reader = Reader(gateway, alice.secret)
    gateway.ollama.wait_for(1)

    for pid in gateway.server.worker_pids():
        gateway.server.kill_worker(pid)
    reader.join(20)

    eventually(lambda: Hold.objects.filter(state="expired").count() == 1, seconds=10)
    assert TokenUsage.objects.get().outcome == "expired"
    assert not any(found for _check, found in reconciliation.differences())


def test_what_an_orphan_pays_is_never_more_than_was_delivered(
    gateway: RunningGateway, alice: Caller
) -> None:
    set_price("llama3", "0.002")
    gateway.ollama.answer("/api/generate", tokens(["x"] * 500, pause=0.02))
    reader = Reader(gateway, alice.secret)
    [asked] = gateway.ollama.wait_for(1)
    # Long enough for the lease to be renewed once, which notes the progress.
    eventually(lambda: Hold.objects.filter(progress__gt=0).exists(), seconds=10)

    for pid in gateway.server.worker_pids():
        gateway.server.kill_worker(pid)
    reader.join(20)

    row = eventually(lambda: TokenUsage.objects.first(), seconds=10)
    assert row.billed and 0 < row.completion_tokens <= asked.lines_sent


def test_a_long_silence_is_not_mistaken_for_death(gateway: RunningGateway, alice: Caller) -> None:
    """Leases are renewed by a thread of their own, also while the model server says nothing."""
    set_price("llama3", "0.002")
    gateway.ollama.answer("/api/generate", tokens(["a", "b"], pause=2.2))

    reader = Reader(gateway, alice.secret)
    reader.join(20)

    assert reader.saw_done and TokenUsage.objects.get().outcome == "complete"
