"""A request that never reaches the model server leaves no hold and no usage row."""

import threading
import time
from typing import Any

import pytest
import requests

from billing import reconciliation
from billing.models import Hold, TokenUsage
from tests.harness.callers import Caller, set_price
from tests.harness.gateway import RunningGateway

pytestmark = pytest.mark.usefixtures("priced")

WORKERS, CALLERS, SECONDS = 2, 40, 3.0
HELLO = [{"role": "user", "content": "hi"}]

ROUTES: dict[str, dict[str, Any]] = {
    "/generate": {"prompt": "hi"},
    "/chat": {"messages": HELLO},
    "/embedding": {"input": "hi"},
    "/api/generate": {"prompt": "hi"},
    "/api/chat": {"messages": HELLO},
    "/api/embed": {"input": "hi"},
    "/api/embeddings": {"prompt": "hi"},
    "/v1/chat/completions": {"messages": HELLO},
    "/v1/completions": {"prompt": "hi"},
    "/v1/embeddings": {"input": "hi"},
    "/v1/responses": {"input": "hi"},
    "/v1/messages": {"messages": HELLO, "max_tokens": 10},
}


def nothing_is_stored() -> bool:
    return not Hold.objects.exists() and not TokenUsage.objects.exists()


def message(answer: requests.Response) -> str:
    error = answer.json()["error"]
    return str(error["message"] if isinstance(error, dict) else error)


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("path", ROUTES)
def test_a_model_that_is_not_installed_is_a_404_in_every_api(
    gateway: RunningGateway, alice: Caller, path: str, stream: bool
) -> None:
    set_price("absent:7b", "0.001")
    body = {"model": "Absent:7b", "stream": stream and "embed" not in path, **ROUTES[path]}

    answer = requests.post(gateway.server.url + path, json=body, headers=alice.headers, timeout=10)

    assert (answer.status_code, message(answer)) == (404, "model 'Absent:7b' not found")
    assert gateway.ollama.requests == [] and nothing_is_stored()


@pytest.mark.parametrize("model", ["there:7b", "absent:7b"])
def test_a_model_without_a_price_does_not_reveal_whether_it_is_installed(
    gateway: RunningGateway, alice: Caller, model: str
) -> None:
    gateway.ollama.models.append("there:7b")
    time.sleep(1.1)  # What was known of an earlier test's models is too old then.
    body = {"model": model, "prompt": "hi"}

    answer = requests.post(
        f"{gateway.server.url}/generate", json=body, headers=alice.headers, timeout=10
    )

    assert (answer.status_code, answer.json()["code"]) == (404, "model_not_priced")
    assert gateway.ollama.requests == [] and nothing_is_stored()


def test_concurrent_requests_for_a_missing_model_share_one_list_per_interval(
    gateway: RunningGateway, alice: Caller
) -> None:
    set_price("absent:7b", "0.001")
    statuses: list[int] = []
    began = time.monotonic()
    until = began + SECONDS

    def ask() -> None:
        with requests.Session() as session:
            while time.monotonic() < until:
                body = {"model": "absent:7b", "prompt": "hi"}
                answer = session.post(
                    f"{gateway.server.url}/generate", json=body, headers=alice.headers, timeout=30
                )
                statuses.append(answer.status_code)

    threads = [threading.Thread(target=ask) for _ in range(CALLERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)

    intervals = time.monotonic() - began  # INVENTORY_SECONDS is 1.

    assert len(statuses) > CALLERS and set(statuses) == {404}
    assert len(gateway.ollama.calls("/api/tags")) <= WORKERS * (intervals + 2)
    assert gateway.ollama.requests == [] and nothing_is_stored()


@pytest.mark.parametrize("is_known", [False, True], ids=["unknown", "known"])
def test_an_unreachable_model_server_leaves_no_rows(
    gateway: RunningGateway, alice: Caller, is_known: bool
) -> None:
    body = {"model": "llama3", "prompt": "hi"}

    def ask() -> requests.Response:
        url = f"{gateway.server.url}/generate"
        return requests.post(url, json=body, headers=alice.headers, timeout=10)

    for _ in range(8 if is_known else 0):
        assert ask().status_code == 200
    rows = TokenUsage.objects.count()
    gateway.ollama.down()

    answers = [ask() for _ in range(10)]

    assert {answer.status_code for answer in answers} == {503}
    assert all(int(answer.headers["Retry-After"]) > 0 for answer in answers)
    assert TokenUsage.objects.count() == Hold.objects.count() == rows
    assert alice.wallet.held == 0
    assert not any(rows for _check, rows in reconciliation.differences())
