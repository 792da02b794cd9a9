"""A request with an `Idempotency-Key` is billed once, also after SDK retries and kill -9."""

import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anthropic
import ollama as official
import openai
import pytest

from billing import reconciliation
from billing.models import Hold, IdempotencyKey, TokenUsage
from tests.fakes.ollama import FakeOllama
from tests.fakes.script import Stall, Wait, tokens
from tests.harness.callers import Caller, new_caller
from tests.harness.gateway import DEADLINES, RunningGateway, eventually, gateway_env, usage_row
from tests.servers.client import BROKEN
from tests.servers.gunicorn import Gunicorn

pytestmark = pytest.mark.usefixtures("priced")

NAMED = {"Idempotency-Key": "order-1"}
MESSAGES: Any = [{"role": "user", "content": "hello"}]
CHAT = {"model": "llama3", "messages": MESSAGES}
AT_ONCE = 20


def post(
    gateway: RunningGateway, caller: Caller, body: Any, path: str = "/v1/chat/completions"
) -> Any:
    """Send a request; return its status, headers and JSON."""
    with gateway.client(timeout=20) as client:
        client.post(path, body, key=caller.secret, headers=NAMED)
        head = client.read_head()
        return head.status, head.headers, client.read_all()


def post_at_once(gateway: RunningGateway, caller: Caller) -> Counter[int]:
    """Send the same request twenty times at once; return how often each status came."""
    statuses: Counter[int] = Counter()
    threads = [
        threading.Thread(target=lambda: statuses.update([post(gateway, caller, CHAT)[0]]))
        for _ in range(AT_ONCE)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    return statuses


# --- At once --------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_of_twenty_concurrent_requests_one_is_served(
    stream: bool, gateway: RunningGateway, alice: Caller
) -> None:
    go_on, statuses = threading.Event(), Counter[int]()
    gateway.ollama.answer("/api/chat", Wait(go_on), tokens("ab", path="/api/chat"))
    body = {**CHAT, "stream": stream}
    threads = [
        threading.Thread(target=lambda: statuses.update([post(gateway, alice, body)[0]]))
        for _ in range(AT_ONCE)
    ]
    for thread in threads:
        thread.start()
    eventually(lambda: statuses[409] == AT_ONCE - 1, seconds=15)
    go_on.set()
    for thread in threads:
        thread.join(20)

    assert statuses == {200: 1, 409: AT_ONCE - 1}
    assert len(gateway.ollama.requests) == 1 == Hold.objects.count() == TokenUsage.objects.count()
    assert not any(rows for _check, rows in reconciliation.differences())


def test_a_repeated_request_gets_the_id_of_the_running_one(
    gateway: RunningGateway, alice: Caller
) -> None:
    go_on = threading.Event()
    gateway.ollama.answer("/api/chat", Wait(go_on), tokens("ab", path="/api/chat"))
    with gateway.client() as first:
        first.post("/v1/chat/completions", CHAT, key=alice.secret, headers=NAMED)
        gateway.ollama.wait_for(1)
        status, headers, body = post(gateway, alice, CHAT)
        other, _headers, _body = post(gateway, alice, {**CHAT, "user": "me"})
        go_on.set()
        request_id = first.read_head().headers["x-request-id"]

    error = json.loads(body)["error"]
    assert (status, other) == (409, 422) and headers["x-should-retry"] == "false"
    assert error["code"] == "idempotency_key_in_use"
    assert error["original_request_id"] == request_id and request_id in error["message"]


def test_of_twenty_concurrent_requests_to_a_fast_model_one_is_served(
    gateway: RunningGateway, alice: Caller
) -> None:
    assert post_at_once(gateway, alice) == {200: 1, 409: AT_ONCE - 1}
    assert len(gateway.ollama.requests) == 1


def test_of_twenty_requests_after_an_unbilled_one_one_is_served(
    gateway: RunningGateway, alice: Caller
) -> None:
    gateway.ollama.down()
    assert post(gateway, alice, CHAT)[0] == 503
    gateway.ollama.up()

    assert post_at_once(gateway, alice) == {200: 1, 409: AT_ONCE - 1}
    assert len(gateway.ollama.requests) == 1


def test_rejected_requests_do_not_use_the_key(gateway: RunningGateway, alice: Caller) -> None:
    poor = new_caller("Poor", credit="0")

    assert post_at_once(gateway, poor) == {402: AT_ONCE}
    assert not IdempotencyKey.objects.exists()


# --- Disconnects ---------------------------------------------------------------------------------


def test_a_disconnect_before_the_first_chunk_frees_the_key(
    gateway: RunningGateway, alice: Caller
) -> None:
    gateway.ollama.answer("/api/chat", Stall(), times=1)
    with gateway.client() as first:
        first.post("/chat", CHAT, key=alice.secret, headers=NAMED)
        gateway.ollama.wait_for(1)
    eventually(lambda: TokenUsage.objects.filter(billed=False).exists())

    assert post(gateway, alice, CHAT, "/chat")[0] == 200


def test_a_disconnect_in_mid_stream_uses_the_key(gateway: RunningGateway, alice: Caller) -> None:
    slow = tokens(["x"] * 200, path="/api/chat", pause=0.02)
    gateway.ollama.answer("/api/chat", slow, times=1)
    body = {**CHAT, "stream": True}
    with gateway.client() as first:
        first.post("/chat", body, key=alice.secret, headers=NAMED)
        first.read_line()
    row = usage_row()

    status, _headers, answer = post(gateway, alice, body, "/chat")

    assert row.billed and status == 409
    assert json.loads(answer)["cost"] == f"{row.cost:f}"


# --- The SDKs, and a worker that is killed --------------------------------------------------------


@pytest.fixture
def crashing_gateway(
    running: RunningGateway, transactional_db: None, tmp_path: Path
) -> Iterator[RunningGateway]:
    """A gateway whose worker dies after the commit of each bill, before the last chunk."""
    with FakeOllama() as ollama:
        faults = {"FAULTS": "after_settle", "FAULT_CHANCE": "1"}
        log = {"FAULT_LOG": str(tmp_path / "faults.log")}
        env = gateway_env(ollama, **(DEADLINES | faults | log))
        with Gunicorn(env, app="tests.faults.faulty_wsgi") as server:
            yield RunningGateway(server, ollama, env)


Call = Callable[[RunningGateway, Caller, bool], Any]


def ask_openai(gateway: RunningGateway, alice: Caller, stream: bool) -> Any:
    with openai.OpenAI(base_url=f"{gateway.server.url}/v1", api_key=alice.secret) as client:
        answer: Any = client.chat.completions.create(**CHAT, stream=stream, extra_headers=NAMED)
        return list(answer) if stream else answer


def ask_anthropic(gateway: RunningGateway, alice: Caller, stream: bool) -> Any:
    with anthropic.Anthropic(base_url=gateway.server.url, api_key=alice.secret) as client:
        answer: Any = client.messages.create(
            **CHAT, max_tokens=20, stream=stream, extra_headers=NAMED
        )
        return list(answer) if stream else answer


@pytest.mark.parametrize("call", [ask_openai, ask_anthropic])
def test_an_sdk_retry_after_a_lost_response_is_billed_once(
    call: Call, crashing_gateway: RunningGateway, alice: Caller
) -> None:
    """The SDK retries automatically, with the same header, unless the request is streamed."""
    with pytest.raises((openai.ConflictError, anthropic.ConflictError)) as caught:
        call(crashing_gateway, alice, False)

    row = TokenUsage.objects.get()
    assert row.outcome == "complete" and row.billed
    assert str(row.request_id) in str(caught.value) and f"{row.cost:f}" in str(caught.value)
    assert len(crashing_gateway.ollama.requests) == 1


@pytest.mark.parametrize("call", [ask_openai, ask_anthropic])
def test_a_repeated_stream_after_a_lost_one_is_billed_once(
    call: Call, crashing_gateway: RunningGateway, alice: Caller
) -> None:
    with pytest.raises(Exception, match=r"(?i)peer closed|incomplete|connection"):
        call(crashing_gateway, alice, True)
    with pytest.raises((openai.ConflictError, anthropic.ConflictError)):
        call(crashing_gateway, alice, True)

    assert TokenUsage.objects.count() == 1 == len(crashing_gateway.ollama.requests)


def test_a_killed_worker_leaves_the_key_in_use_until_its_hold_is_settled(
    gateway: RunningGateway, alice: Caller
) -> None:
    gateway.ollama.answer("/api/chat", tokens(["x"] * 500, path="/api/chat", pause=0.02), times=1)
    body = {**CHAT, "stream": True}
    with gateway.client(timeout=20) as first:
        first.post("/chat", body, key=alice.secret, headers=NAMED)
        first.read_line()
        eventually(lambda: Hold.objects.filter(progress__gt=0).exists(), seconds=10)
        for pid in gateway.server.worker_pids():
            gateway.server.kill_worker(pid)
        with pytest.raises(BROKEN):
            first.read_all()
    seen = eventually(lambda: _statuses_until_settled(gateway, alice, body), seconds=15)

    assert seen == {409} and TokenUsage.objects.get().billed
    assert post(gateway, alice, body, "/chat")[0] == 409


def _statuses_until_settled(gateway: RunningGateway, alice: Caller, body: Any) -> set[int]:
    """Return the statuses of repeated requests while the hold is open."""
    if Hold.objects.filter(state="open").exists():
        assert post(gateway, alice, body, "/chat")[0] in (409, 503)
        return set()
    return {post(gateway, alice, body, "/chat")[0]}


def test_the_official_ollama_client_sends_the_header(
    gateway: RunningGateway, alice: Caller
) -> None:
    client = official.Client(host=gateway.server.url, headers={**alice.headers, **NAMED})

    client.chat(model="llama3", messages=MESSAGES)
    with pytest.raises(official.ResponseError) as caught:
        client.chat(model="llama3", messages=MESSAGES)

    assert caught.value.status_code == 409 and str(usage_row().request_id) in caught.value.error
