"""A large embedding request is sent in batches, but is one request for its client and its bill."""

import base64
import json
import struct
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, ClassVar

import pytest
import requests

from billing.models import Hold, TokenUsage
from tests.fakes import behaviour
from tests.fakes.ollama import FakeOllama, Received
from tests.fakes.script import Answer, Close, Step, reply
from tests.harness.callers import Caller
from tests.harness.gateway import DEADLINES, RunningGateway, eventually, gateway_env, usage_row
from tests.servers.gunicorn import Gunicorn

pytestmark = pytest.mark.usefixtures("priced")

PART, INPUTS = 16, 2000
MODEL = "nomic-embed-text:latest"


@pytest.fixture(scope="module")
def running(django_db_setup: None, django_db_blocker: object) -> Iterator[RunningGateway]:
    with FakeOllama() as ollama:
        env = gateway_env(ollama, **DEADLINES)
        with Gunicorn(env) as server:
            yield RunningGateway(server, ollama, env)


@dataclass(frozen=True)
class Queued(Step):
    """Wait in the model server's queue, then take some time for each text."""

    turn: threading.Lock
    seconds: float
    instant: ClassVar[bool] = False

    def play(self, answer: Answer) -> None:
        with self.turn:
            answer.pause(self.seconds)


def texts_of(received: Received) -> list[str]:
    given = received.json["input"]
    return [given] if isinstance(given, str) else given


def embedded(received: Received) -> list[Step]:
    return behaviour.answer(received, [MODEL])


def texts(count: int) -> list[str]:
    return [f"text number {number}" for number in range(count)]


def post(gateway: RunningGateway, caller: Caller, path: str, **body: Any) -> Any:
    answer = requests.post(
        gateway.server.url + path,
        json={"model": "nomic-embed-text", **body},
        headers=caller.headers,
        timeout=30,
    )
    assert answer.status_code == 200, answer.text
    return answer.json()


def vectors_of(path: str, answer: Any) -> list[list[float]]:
    if path != "/v1/embeddings":
        return answer["embeddings"]  # type: ignore[no-any-return]
    assert [one["index"] for one in answer["data"]] == list(range(len(answer["data"])))
    return [one["embedding"] for one in answer["data"]]


@pytest.mark.parametrize("count", [PART, PART + 1, 3 * PART, 100])
@pytest.mark.parametrize("path", ["/api/embed", "/embedding", "/v1/embeddings"])
def test_batches_give_the_same_response_as_one_call(
    gateway: RunningGateway, alice: Caller, path: str, count: int
) -> None:
    answer = post(gateway, alice, path, input=texts(count))

    assert vectors_of(path, answer) == [behaviour.vector(text) for text in texts(count)]
    calls = [texts_of(call) for call in gateway.ollama.calls("/api/embed")]
    assert [text for call in calls for text in call] == texts(count)
    assert max(map(len, calls)) <= PART and len(calls) == -(-count // PART)
    row = usage_row()
    assert (row.prompt_tokens, row.completion_tokens) == (3 * count, 0)
    assert (row.outcome, row.count_source, row.billed) == ("complete", "upstream", True)
    assert answer["usage"]["prompt_tokens"] == 3 * count


def test_batches_are_joined_in_base64(gateway: RunningGateway, alice: Caller) -> None:
    answer = post(gateway, alice, "/v1/embeddings", input=texts(20), encoding_format="base64")

    packed = [base64.b64decode(one["embedding"]) for one in answer["data"]]
    vectors = [list(struct.unpack("<8f", one)) for one in packed]
    assert vectors == [pytest.approx(behaviour.vector(text)) for text in texts(20)]


def test_counts_and_durations_of_batches_are_added(gateway: RunningGateway, alice: Caller) -> None:
    answer = post(gateway, alice, "/api/embed", input=texts(3 * PART))

    assert answer["prompt_eval_count"] == 9 * PART
    assert (answer["total_duration"], answer["load_duration"]) == (6_000_000, 3_000_000)


def test_another_request_waits_for_one_batch_only(gateway: RunningGateway, alice: Caller) -> None:
    turn, begun = threading.Lock(), threading.Event()

    def in_turn(received: Received) -> list[Step]:
        begun.set()
        return [Queued(turn, 0.002 * len(texts_of(received))), *embedded(received)]

    gateway.ollama.answer("/api/embed", in_turn)
    sums: list[int] = []
    batch = threading.Thread(
        target=lambda: sums.append(
            post(gateway, alice, "/api/embed", input=texts(INPUTS))["prompt_eval_count"]
        )
    )
    batch.start()
    assert begun.wait(10)
    waited: list[int] = []
    while len(waited) < 5:
        before = len(gateway.ollama.calls("/api/embed"))
        post(gateway, alice, "/api/embed", input="one text")
        waited.append(len(gateway.ollama.calls("/api/embed")) - before)
    assert batch.is_alive()
    batch.join(60)

    # One's own call, the part that was under way when it came, and the next.
    assert max(waited) <= 3
    assert sums == [3 * INPUTS]


def test_a_disconnect_stops_further_batches_and_completed_ones_are_billed(
    gateway: RunningGateway, alice: Caller
) -> None:
    done = threading.Event()

    def slow_from_the_fourth(received: Received) -> list[Step]:
        if "text number 48" in texts_of(received):
            done.set()
            return [Queued(threading.Lock(), 20.0), *embedded(received)]
        return embedded(received)

    gateway.ollama.answer("/api/embed", slow_from_the_fourth)
    with gateway.client() as client:
        body = {"model": "nomic-embed-text", "input": texts(200)}
        client.post("/api/embed", body, key=alice.secret)
        assert done.wait(10)
        time.sleep(0.1)

    row = usage_row()
    assert (row.outcome, row.billed, row.count_source) == ("client_left", True, "counted")
    assert row.prompt_tokens == 3 * 48
    assert len(gateway.ollama.calls("/api/embed")) == 4
    eventually(lambda: not gateway.ollama.in_flight)


BROKEN = {
    "a refusal": (reply({"error": "the input length exceeds the context length"}, 400), 400),
    "a failure": (reply({"error": "llama-server process has terminated"}, 500), 502),
    "nothing": ([Close()], 502),
    "no vectors": (reply({"embeddings": []}), 502),
    "too few vectors": (reply({"embeddings": [[1.0]]}), 502),
    "an empty body": (reply(""), 502),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_failed_batch_fails_the_request_without_a_bill(
    gateway: RunningGateway, alice: Caller, case: str
) -> None:
    script, status = BROKEN[case]

    def third_fails(received: Received) -> Any:
        return script if "text number 32" in texts_of(received) else embedded(received)

    gateway.ollama.answer("/api/embed", third_fails)
    url, body = (
        f"{gateway.server.url}/api/embed",
        {"model": "nomic-embed-text", "input": texts(100)},
    )

    answer = requests.post(url, json=body, headers=alice.headers, timeout=30)

    assert answer.status_code == status, answer.text
    assert "embeddings" not in json.loads(answer.content)
    row = usage_row()
    assert (row.billed, row.cost) == (False, Decimal(0)) and alice.wallet.held == 0
    assert len(gateway.ollama.calls("/api/embed")) == 3


def test_a_batch_without_a_count_makes_the_total_an_estimate(
    gateway: RunningGateway, alice: Caller
) -> None:
    def uncounted(received: Received) -> Any:
        vectors = [behaviour.vector(text) for text in texts_of(received)]
        counts = {} if "text number 16" in texts_of(received) else {"prompt_eval_count": 5}
        return reply({"embeddings": vectors, **counts})

    gateway.ollama.answer("/api/embed", uncounted)
    post(gateway, alice, "/api/embed", input=texts(40))

    assert usage_row().count_source == "estimated"
    assert Hold.objects.count() == TokenUsage.objects.count() == 1


def test_a_disconnect_is_not_billed_by_an_impossible_count(
    gateway: RunningGateway, alice: Caller
) -> None:
    begun = threading.Event()

    def lying(received: Received) -> Any:
        if "text number 16" in texts_of(received):
            begun.set()
            return [Queued(threading.Lock(), 20.0), *embedded(received)]
        vectors = [behaviour.vector(text) for text in texts_of(received)]
        return reply({"embeddings": vectors, "prompt_eval_count": 19_000_000})

    gateway.ollama.answer("/api/embed", lying)
    with gateway.client() as client:
        body = {"model": "nomic-embed-text", "input": texts(40)}
        client.post("/api/embed", body, key=alice.secret)
        assert begun.wait(10)
        time.sleep(0.1)

    row = usage_row()
    hold = Hold.objects.get()
    assert row.billed and row.prompt_tokens <= hold.tokens
