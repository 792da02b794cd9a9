"""Caps hold, with any number of processes and threads racing for the last of the credit."""

import threading
from collections import Counter
from collections.abc import Iterator
from decimal import Decimal

import pytest
import requests

from billing import reconciliation
from billing.models import Hold, TokenUsage
from billing.money import from_units
from billing.pricing import cost
from gateway.validation import policy
from tests.fakes.ollama import FakeOllama
from tests.fakes.script import Wait, tokens
from tests.harness.callers import Caller, new_caller, set_price
from tests.harness.gateway import RunningGateway, eventually, gateway_env
from tests.servers.gunicorn import Gunicorn

CALLERS, PAID_FOR, WRITES = 50, 10, 16


def most_one_costs() -> Decimal:
    """Return what one of these requests may cost at most, which is what is held for it."""
    price = set_price("llama3", "0.002", "0.004")
    prompt_bound = len("hi") + policy.MESSAGE_TOKENS + policy.TEMPLATE_TOKENS
    return from_units(cost(price.rates, prompt_bound, WRITES))


@pytest.fixture
def patient(django_db_setup: None, transactional_db: None) -> Iterator[RunningGateway]:
    """A gateway that waits for the model server as long as a busy machine makes it."""
    with FakeOllama() as ollama:
        env = gateway_env(ollama, GATEWAY_THREADS="64")
        with Gunicorn(env) as server:
            yield RunningGateway(server, ollama, env)


def ask_at_once(gateway: RunningGateway, caller: Caller, times: int, statuses: list[int]) -> None:
    """Ask from many threads at the same moment; note each status as it comes."""
    start = threading.Barrier(times)
    body = {"model": "llama3", "prompt": "hi", "options": {"num_predict": WRITES}}

    def ask() -> None:
        start.wait(30)
        url = f"{gateway.server.url}/generate"
        answer = requests.post(url, json=body, headers=caller.headers, timeout=60)
        statuses.append(answer.status_code)

    threads = [threading.Thread(target=ask) for _ in range(times)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(90)


def test_fifty_at_once_against_credit_for_ten_serves_exactly_ten(patient: RunningGateway) -> None:
    alice = new_caller("Alice", credit=str(most_one_costs() * PAID_FOR))
    # Nobody is answered before everybody else was refused, so no settled answer makes room.
    all_asked = threading.Event()
    patient.ollama.answer("/api/generate", Wait(all_asked), tokens("ab"))
    statuses: list[int] = []
    opener = threading.Thread(target=lambda: open_when_refused(statuses, all_asked))
    opener.start()

    ask_at_once(patient, alice, CALLERS, statuses)

    opener.join()
    assert Counter(statuses) == {200: PAID_FOR, 402: CALLERS - PAID_FOR}
    assert len(patient.ollama.requests) == PAID_FOR
    assert TokenUsage.objects.filter(billed=True).count() == PAID_FOR
    assert not any(found for _check, found in reconciliation.differences())


def open_when_refused(statuses: list[int], all_asked: threading.Event) -> None:
    try:
        eventually(lambda: statuses.count(402) == CALLERS - PAID_FOR, seconds=50)
    finally:
        all_asked.set()


def test_credit_that_a_cheaper_answer_left_over_is_there_for_the_next(
    alice: Caller, ollama: FakeOllama
) -> None:
    most_one_costs()

    answer = alice.post("/generate", model="llama3", prompt="hi").json()

    wallet = alice.wallet
    assert from_units(wallet.spent) == Decimal(answer["usage"]["cost"])
    assert (wallet.held, Hold.objects.get().state) == (0, "settled")


def test_who_has_no_credit_is_told_what_is_missing(ollama: FakeOllama, db: None) -> None:
    most_one_costs()
    poor = new_caller("Poor", credit="0")

    response = poor.post("/generate", model="llama3", prompt="hi")

    assert response.status_code == 402 and response.json()["code"] == "insufficient_credit"
    assert "top the account up" in response.json()["error"] and not ollama.requests


def test_an_answer_longer_than_its_hold_is_billed_as_it_was(ollama: FakeOllama, db: None) -> None:
    """A model's own system prompt may be longer than foreseen, by 4,096 tokens at most."""
    alice = new_caller("Alice", credit=str(most_one_costs()))
    ollama.answer("/api/generate", tokens("ab", prompt=4000))
    body = {"model": "llama3", "prompt": "hi", "options": {"num_predict": WRITES}}

    assert alice.post("/generate", body).status_code == 200

    assert alice.wallet.spent > alice.wallet.limit
    assert alice.post("/generate", body).status_code == 402


def test_a_large_body_of_who_has_no_credit_is_refused_before_it_is_read(
    ollama: FakeOllama, db: None
) -> None:
    most_one_costs()
    poor, postpaid = (
        new_caller("Poor", credit="0"),
        new_caller("Postpaid", credit="0", postpaid=True),
    )
    body = b'{"model": "llama3", "prompt": "hi", "images": ["' + b"!" * 400_000

    refused = poor.post("/generate", body)

    assert refused.status_code == 402 and refused.json()["code"] == "insufficient_credit"
    assert "not valid JSON" in postpaid.post("/generate", body).json()["error"]
