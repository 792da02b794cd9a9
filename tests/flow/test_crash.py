"""kill -9 during streams: no hold stays open, nothing is lost and nothing is billed twice."""

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
def disposable_gateway(running: RunningGateway, transactional_db: None) -> Iterator[RunningGateway]:
    """A gateway that the test kills."""
    with FakeOllama() as ollama:
        env = gateway_env(ollama, **(DEADLINES | LONG_LEASE))
        with Gunicorn(env) as server:
            yield RunningGateway(server, ollama, env)


class Reader(threading.Thread):
    """Reads one stream to its end, complete or not."""

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
    disposable_gateway: RunningGateway, alice: Caller
) -> None:
    set_price("llama3", "0.002")
    disposable_gateway.ollama.answer("/api/generate", tokens("ab"), times=3)
    disposable_gateway.ollama.answer("/api/generate", tokens(["x"] * 500, pause=0.02))
    readers = [Reader(disposable_gateway, alice.secret) for _ in range(STREAMS)]
    disposable_gateway.ollama.wait_for(STREAMS)
    eventually(lambda: sum(reader.saw_done for reader in readers) == 3)
    time.sleep(0.3)

    for pid in disposable_gateway.server.worker_pids():
        disposable_gateway.server.kill_worker(pid)
    for reader in readers:
        reader.join(20)
    settled = manage(disposable_gateway.env, "settle_holds")

    assert settled.returncode == 0, settled.stderr
    assert not Hold.objects.filter(state="open").exists()
    assert TokenUsage.objects.count() == STREAMS
    finished = {reader.request_id for reader in readers if reader.saw_done}
    complete = {str(row.request_id) for row in TokenUsage.objects.filter(outcome="complete")}
    assert len(finished) == 3 and finished == complete
    assert manage(disposable_gateway.env, "settle_holds").returncode == 0
    reconciled = manage(disposable_gateway.env, "reconcile")
    assert reconciled.returncode == 0, reconciled.stdout


def test_abandoned_holds_are_settled_automatically(gateway: RunningGateway, alice: Caller) -> None:
    """The lease is 3 seconds here. The new worker settles the holds of the killed one."""
    set_price("llama3", "0.002")
    gateway.ollama.answer("/api/generate", tokens(["x"] * 500, pause=0.02))
    reader = Reader(gateway, alice.secret)
    gateway.ollama.wait_for(1)

    for pid in gateway.server.worker_pids():
        gateway.server.kill_worker(pid)
    reader.join(20)

    eventually(lambda: Hold.objects.filter(state="expired").count() == 1, seconds=10)
    assert TokenUsage.objects.get().outcome == "expired"
    assert not any(rows for _check, rows in reconciliation.differences())


def test_an_abandoned_response_is_billed_for_no_more_than_was_delivered(
    gateway: RunningGateway, alice: Caller
) -> None:
    set_price("llama3", "0.002")
    gateway.ollama.answer("/api/generate", tokens(["x"] * 500, pause=0.02))
    reader = Reader(gateway, alice.secret)
    [received] = gateway.ollama.wait_for(1)
    # Long enough for the lease to be renewed once, which notes the progress.
    eventually(lambda: Hold.objects.filter(progress__gt=0).exists(), seconds=10)

    for pid in gateway.server.worker_pids():
        gateway.server.kill_worker(pid)
    reader.join(20)

    row = eventually(lambda: TokenUsage.objects.first(), seconds=10)
    assert row.billed and 0 < row.completion_tokens <= received.lines_sent


def test_leases_are_renewed_while_the_model_server_is_silent(
    gateway: RunningGateway, alice: Caller
) -> None:
    """A separate thread renews leases, also between two chunks."""
    set_price("llama3", "0.002")
    gateway.ollama.answer("/api/generate", tokens(["a", "b"], pause=2.2))

    reader = Reader(gateway, alice.secret)
    reader.join(20)

    assert reader.saw_done and TokenUsage.objects.get().outcome == "complete"
