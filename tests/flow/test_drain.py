"""SIGTERM: running answers get some time, then end in good order, settled; nothing is killed."""

import json
import signal
import time
from collections.abc import Iterator

import pytest

from billing import reconciliation
from billing.models import Hold, TokenUsage
from tests.fakes.ollama import FakeOllama
from tests.fakes.script import Sleep, Stall, tokens
from tests.harness.callers import Caller, set_price
from tests.harness.gateway import DEADLINES, RunningGateway, eventually, gateway_env
from tests.servers.client import RawClient
from tests.servers.gunicorn import Gunicorn

DRAIN = 1


@pytest.fixture
def ending(django_db_setup: None, transactional_db: None) -> Iterator[RunningGateway]:
    """A gateway that will be asked to end, and drains for a second."""
    set_price("llama3", "0.002")
    with FakeOllama() as ollama:
        env = gateway_env(ollama, **DEADLINES, DRAIN_SECONDS=str(DRAIN))
        with Gunicorn(env) as server:
            yield RunningGateway(server, ollama, env)


def ask(gateway: RunningGateway, alice: Caller) -> RawClient:
    client = gateway.client(timeout=15)
    client.post("/api/generate", {"model": "llama3", "prompt": "hi"}, key=alice.secret)
    gateway.ollama.wait_for(1)
    return client


def last_line(client: RawClient) -> dict[str, object]:
    found: dict[str, object] = json.loads(client.read_all().splitlines()[-1])
    return found


def test_a_long_stream_is_ended_in_good_order(ending: RunningGateway, alice: Caller) -> None:
    ending.ollama.answer("/api/generate", tokens(["x"] * 900, pause=0.02))
    client = ask(ending, alice)
    client.read_head()

    ending.server.signal(signal.SIGTERM)

    assert last_line(client)["code"] == "gateway_stopping"
    row = eventually(lambda: TokenUsage.objects.first())
    assert (row.outcome, row.billed) == ("gateway_stopped", True)
    assert 0 < row.completion_tokens <= ending.ollama.requests[0].lines_sent
    assert not any(found for _check, found in reconciliation.differences())


def test_a_silent_model_server_does_not_hold_up_the_end(
    ending: RunningGateway, alice: Caller
) -> None:
    ending.ollama.answer("/api/generate", Stall())
    client = ask(ending, alice)

    asked_at = time.monotonic()
    ending.server.signal(signal.SIGTERM)

    assert client.read_head().status == 503
    assert ending.server.stop(timeout=10) == 0
    assert time.monotonic() - asked_at < DRAIN + 5, "it was left to SIGKILL"
    row = TokenUsage.objects.get()
    assert (row.outcome, row.billed, Hold.objects.get().state) == (
        "gateway_stopped",
        False,
        "released",
    )


def test_a_short_answer_under_way_is_finished(ending: RunningGateway, alice: Caller) -> None:
    ending.ollama.answer("/api/generate", Sleep(0.4), tokens("ab"))
    client = ask(ending, alice)

    ending.server.signal(signal.SIGTERM)

    assert last_line(client)["done"] is True
    assert TokenUsage.objects.get().outcome == "complete"
