"""Concurrent requests in several processes never exceed the credit."""

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


def maximum_cost() -> Decimal:
    """Return the maximum cost of one of these requests, which is the amount held for it."""
    price = set_price("llama3", "0.002", "0.004")
    prompt_bound = len("hi") + policy.MESSAGE_TOKENS + policy.TEMPLATE_TOKENS
    return from_units(cost(price.rates, prompt_bound, WRITES))


@pytest.fixture
def patient_gateway(django_db_setup: None, transactional_db: None) -> Iterator[RunningGateway]:
    """A gateway with timeouts that are long enough for a busy machine."""
    with FakeOllama() as ollama:
        env = gateway_env(ollama, GATEWAY_THREADS="64")
        with Gunicorn(env) as server:
            yield RunningGateway(server, ollama, env)


def send_at_once(gateway: RunningGateway, caller: Caller, times: int, statuses: list[int]) -> None:
    """Send requests from many threads at the same moment; append each status as it arrives."""
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


def test_of_fifty_concurrent_requests_credit_for_ten_serves_ten(
    patient_gateway: RunningGateway,
) -> None:
    alice = new_caller("Alice", credit=str(maximum_cost() * PAID_FOR))
    # No response completes before all others were rejected, so no settlement frees credit.
    all_asked = threading.Event()
    patient_gateway.ollama.answer("/api/generate", Wait(all_asked), tokens("ab"))
    statuses: list[int] = []
    opener = threading.Thread(target=lambda: open_when_refused(statuses, all_asked))
    opener.start()

    send_at_once(patient_gateway, alice, CALLERS, statuses)

    opener.join()
    assert Counter(statuses) == {200: PAID_FOR, 402: CALLERS - PAID_FOR}
    assert len(patient_gateway.ollama.requests) == PAID_FOR
    assert TokenUsage.objects.filter(billed=True).count() == PAID_FOR
    assert not any(rows for _check, rows in reconciliation.differences())


def open_when_refused(statuses: list[int], all_asked: threading.Event) -> None:
    try:
        eventually(lambda: statuses.count(402) == CALLERS - PAID_FOR, seconds=50)
    finally:
        all_asked.set()


def test_unused_credit_of_a_hold_is_available_to_the_next_request(
    alice: Caller, ollama: FakeOllama
) -> None:
    maximum_cost()

    answer = alice.post("/generate", model="llama3", prompt="hi").json()

    wallet = alice.wallet
    assert from_units(wallet.spent) == Decimal(answer["usage"]["cost"])
    assert (wallet.held, Hold.objects.get().state) == (0, "settled")


def test_a_request_without_credit_names_the_missing_amount(ollama: FakeOllama, db: None) -> None:
    maximum_cost()
    poor = new_caller("Poor", credit="0")

    response = poor.post("/generate", model="llama3", prompt="hi")

    assert response.status_code == 402 and response.json()["code"] == "insufficient_credit"
    assert "top the account up" in response.json()["error"] and not ollama.requests


def test_a_response_above_its_hold_is_billed_in_full(ollama: FakeOllama, db: None) -> None:
    """A model's own system prompt may add up to 4,096 tokens."""
    alice = new_caller("Alice", credit=str(maximum_cost()))
    ollama.answer("/api/generate", tokens("ab", prompt=4000))
    body = {"model": "llama3", "prompt": "hi", "options": {"num_predict": WRITES}}

    assert alice.post("/generate", body).status_code == 200

    assert alice.wallet.spent > alice.wallet.limit
    assert alice.post("/generate", body).status_code == 402


def test_a_large_body_without_credit_is_rejected_before_it_is_read(
    ollama: FakeOllama, db: None
) -> None:
    maximum_cost()
    poor, postpaid = (
        new_caller("Poor", credit="0"),
        new_caller("Postpaid", credit="0", postpaid=True),
    )
    body = b'{"model": "llama3", "prompt": "hi", "images": ["' + b"!" * 400_000

    refused = poor.post("/generate", body)

    assert refused.status_code == 402 and refused.json()["code"] == "insufficient_credit"
    assert "not valid JSON" in postpaid.post("/generate", body).json()["error"]
