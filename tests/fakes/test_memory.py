"""The fake loads models as Ollama does."""

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import requests

from tests.fakes.memory import Load
from tests.fakes.ollama import FakeOllama
from tests.servers.client import RawClient

pytestmark = pytest.mark.once  # It needs no database.

LOAD_SECONDS = 0.2


@pytest.fixture
def fake() -> Iterator[FakeOllama]:
    """A model server with llama3 in memory and slow loads."""
    with FakeOllama() as found:
        found.memory.models = ["llama3:latest"]
        found.memory.seconds = LOAD_SECONDS
        yield found


def ask(fake: FakeOllama, model: str, **fields: Any) -> float:
    """Send a request and return its duration."""
    began = time.monotonic()
    body = {"model": model, "prompt": "hi there", **fields}
    assert requests.post(f"{fake.url}/api/generate", json=body, timeout=5).status_code == 200
    return time.monotonic() - began


def running(fake: FakeOllama) -> list[str]:
    return [one["name"] for one in requests.get(f"{fake.url}/api/ps", timeout=5).json()["models"]]


def in_threads(*work: Callable[[], Any]) -> list[threading.Thread]:
    threads = [threading.Thread(target=one) for one in work]
    for thread in threads:
        thread.start()
    return threads


def test_a_model_is_loaded_once_and_then_listed(fake: FakeOllama) -> None:
    assert running(fake) == ["llama3:latest"]

    assert ask(fake, "mistral") >= LOAD_SECONDS > ask(fake, "mistral")

    assert running(fake) == ["llama3:latest", "mistral:latest"]
    assert fake.memory.loads == [Load("mistral:latest")]


def test_two_waiting_requests_share_one_load(fake: FakeOllama) -> None:
    for thread in in_threads(lambda: ask(fake, "mistral"), lambda: ask(fake, "mistral")):
        thread.join(5)

    assert fake.memory.loads == [Load("mistral:latest")]


def test_a_disconnect_aborts_the_load_and_the_next_request_restarts_it(fake: FakeOllama) -> None:
    with RawClient(fake.url) as client:
        client.post("/api/generate", {"model": "mistral", "prompt": "hi"})
        fake.wait_for(1)
        [waiting] = in_threads(lambda: ask(fake, "mistral"))
        fake.wait_for(2)
    waiting.join(5)

    assert fake.memory.loads == [Load("mistral:latest", aborted=True), Load("mistral:latest")]


def test_a_model_in_memory_does_not_wait_for_a_load(fake: FakeOllama) -> None:
    [loading] = in_threads(lambda: ask(fake, "mistral"))
    fake.wait_for(1)

    assert ask(fake, "llama3") < LOAD_SECONDS
    loading.join(5)


def test_a_load_evicts_a_model_if_memory_is_full(fake: FakeOllama) -> None:
    fake.memory.room = 1

    ask(fake, "mistral")

    assert running(fake) == ["mistral:latest"]


def test_an_empty_prompt_with_keep_alive_zero_unloads(fake: FakeOllama) -> None:
    ask(fake, "llama3", prompt="", keep_alive=0)

    assert running(fake) == [] and fake.memory.loads == []


def test_a_model_that_is_not_installed_is_not_loaded(fake: FakeOllama) -> None:
    answer = requests.post(f"{fake.url}/api/generate", json={"model": "nobody"}, timeout=5)

    assert answer.status_code == 404 and fake.memory.loads == []


def test_the_gateways_own_requests_are_recorded_separately(fake: FakeOllama) -> None:
    running(fake)

    assert fake.requests == [] and len(fake.calls("/api/ps")) == 1
