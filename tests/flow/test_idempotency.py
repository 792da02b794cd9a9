"""An `Idempotency-Key` pays once: several workers, the SDKs' own retries, and kill -9."""

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
from tests.conftest import Caller, new_caller
from tests.fakes.ollama import FakeOllama
from tests.fakes.script import Stall, Wait, tokens
from tests.flow.conftest import DEADLINES, House, eventually, gateway_env, the_row
from tests.servers.client import BROKEN
from tests.servers.gunicorn import Gunicorn

pytestmark = pytest.mark.usefixtures("priced")

NAMED = {"Idempotency-Key": "order-1"}
MESSAGES: Any = [{"role": "user", "content": "hello"}]
CHAT = {"model": "llama3", "messages": MESSAGES}
AT_ONCE = 20


def post(house: House, caller: Caller, body: Any, path: str = "/v1/chat/completions") -> Any:
    """Send a request; return its status, headers and JSON."""
    with house.client(timeout=20) as client:
        client.post(path, body, key=caller.secret, headers=NAMED)
        head = client.read_head()
        return head.status, head.headers, client.read_all()


def post_at_once(house: House, caller: Caller) -> Counter[int]:
    """Send the same request twenty times at once; return how often each status came."""
    statuses: Counter[int] = Counter()
    threads = [
        threading.Thread(target=lambda: statuses.update([post(house, caller, CHAT)[0]]))
        for _ in range(AT_ONCE)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    return statuses


# --- At once --------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_of_twenty_at_once_one_is_served(stream: bool, house: House, alice: Caller) -> None:
    go_on, statuses = threading.Event(), Counter[int]()
    house.ollama.answer("/api/chat", Wait(go_on), tokens("ab", path="/api/chat"))
    body = {**CHAT, "stream": stream}
    threads = [
        threading.Thread(target=lambda: statuses.update([post(house, alice, body)[0]]))
        for _ in range(AT_ONCE)
    ]
    for thread in threads:
        thread.start()
    eventually(lambda: statuses[409] == AT_ONCE - 1, seconds=15)
    go_on.set()
    for thread in threads:
        thread.join(20)

    assert statuses == {200: 1, 409: AT_ONCE - 1}
    assert len(house.ollama.requests) == 1 == Hold.objects.count() == TokenUsage.objects.count()
    assert not any(found for _check, found in reconciliation.differences())


def test_a_repeat_of_a_running_request_names_it(house: House, alice: Caller) -> None:
    go_on = threading.Event()
    house.ollama.answer("/api/chat", Wait(go_on), tokens("ab", path="/api/chat"))
    with house.client() as first:
        first.post("/v1/chat/completions", CHAT, key=alice.secret, headers=NAMED)
        house.ollama.wait_for(1)
        status, headers, body = post(house, alice, CHAT)
        other, _headers, _body = post(house, alice, {**CHAT, "user": "me"})
        go_on.set()
        request_id = first.read_head().headers["x-request-id"]

    error = json.loads(body)["error"]
    assert (status, other) == (409, 422) and headers["x-should-retry"] == "false"
    assert error["code"] == "idempotency_key_in_use"
    assert error["original_request_id"] == request_id and request_id in error["message"]


def test_of_twenty_at_once_that_do_not_wait_one_is_served(house: House, alice: Caller) -> None:
    assert post_at_once(house, alice) == {200: 1, 409: AT_ONCE - 1}
    assert len(house.ollama.requests) == 1


def test_of_twenty_that_find_a_free_key_one_takes_it(house: House, alice: Caller) -> None:
    house.ollama.down()
    assert post(house, alice, CHAT)[0] == 503
    house.ollama.up()

    assert post_at_once(house, alice) == {200: 1, 409: AT_ONCE - 1}
    assert len(house.ollama.requests) == 1


def test_without_credit_none_of_twenty_uses_the_key_up(house: House, alice: Caller) -> None:
    poor = new_caller("Poor", credit="0")

    assert post_at_once(house, poor) == {402: AT_ONCE}
    assert not IdempotencyKey.objects.exists()


# --- Clients that leave ---------------------------------------------------------------------------


def test_who_left_before_the_first_chunk_may_ask_again(house: House, alice: Caller) -> None:
    house.ollama.answer("/api/chat", Stall(), times=1)
    with house.client() as first:
        first.post("/chat", CHAT, key=alice.secret, headers=NAMED)
        house.ollama.wait_for(1)
    eventually(lambda: TokenUsage.objects.filter(billed=False).exists())

    assert post(house, alice, CHAT, "/chat")[0] == 200


def test_who_left_later_has_paid(house: House, alice: Caller) -> None:
    slow = tokens(["x"] * 200, path="/api/chat", pause=0.02)
    house.ollama.answer("/api/chat", slow, times=1)
    body = {**CHAT, "stream": True}
    with house.client() as first:
        first.post("/chat", body, key=alice.secret, headers=NAMED)
        first.read_line()
    row = the_row()

    status, _headers, answer = post(house, alice, body, "/chat")

    assert row.billed and status == 409
    assert json.loads(answer)["cost"] == f"{row.cost:f}"


# --- The SDKs, and a worker that is killed --------------------------------------------------------


@pytest.fixture
def fragile(running: House, transactional_db: None, tmp_path: Path) -> Iterator[House]:
    """A gateway whose worker dies after the commit of each bill, before the last chunk."""
    with FakeOllama() as ollama:
        faults = {"FAULTS": "after_settle", "FAULT_CHANCE": "1"}
        log = {"FAULT_LOG": str(tmp_path / "faults.log")}
        env = gateway_env(ollama, **(DEADLINES | faults | log))
        with Gunicorn(env, app="tests.faults.faulty_wsgi") as server:
            yield House(server, ollama, env)


Ask = Callable[[House, Caller, bool], Any]


def ask_openai(house: House, alice: Caller, stream: bool) -> Any:
    with openai.OpenAI(base_url=f"{house.server.url}/v1", api_key=alice.secret) as client:
        answer: Any = client.chat.completions.create(**CHAT, stream=stream, extra_headers=NAMED)
        return list(answer) if stream else answer


def ask_anthropic(house: House, alice: Caller, stream: bool) -> Any:
    with anthropic.Anthropic(base_url=house.server.url, api_key=alice.secret) as client:
        answer: Any = client.messages.create(
            **CHAT, max_tokens=20, stream=stream, extra_headers=NAMED
        )
        return list(answer) if stream else answer


@pytest.mark.parametrize("ask", [ask_openai, ask_anthropic])
def test_an_sdk_that_repeats_a_lost_response_pays_once(
    ask: Ask, fragile: House, alice: Caller
) -> None:
    """Not streamed, the SDK asks again by itself, with the same header."""
    with pytest.raises((openai.ConflictError, anthropic.ConflictError)) as caught:
        ask(fragile, alice, False)

    row = TokenUsage.objects.get()
    assert row.outcome == "complete" and row.billed
    assert str(row.request_id) in str(caught.value) and f"{row.cost:f}" in str(caught.value)
    assert len(fragile.ollama.requests) == 1


@pytest.mark.parametrize("ask", [ask_openai, ask_anthropic])
def test_a_program_that_repeats_a_lost_stream_pays_once(
    ask: Ask, fragile: House, alice: Caller
) -> None:
    with pytest.raises(Exception, match=r"(?i)peer closed|incomplete|connection"):
        ask(fragile, alice, True)
    with pytest.raises((openai.ConflictError, anthropic.ConflictError)):
        ask(fragile, alice, True)

    assert TokenUsage.objects.count() == 1 == len(fragile.ollama.requests)


def test_a_killed_worker_leaves_the_key_in_use_until_its_hold_is_settled(
    house: House, alice: Caller
) -> None:
    house.ollama.answer("/api/chat", tokens(["x"] * 500, path="/api/chat", pause=0.02), times=1)
    body = {**CHAT, "stream": True}
    with house.client(timeout=20) as first:
        first.post("/chat", body, key=alice.secret, headers=NAMED)
        first.read_line()
        eventually(lambda: Hold.objects.filter(progress__gt=0).exists(), seconds=10)
        for pid in house.server.worker_pids():
            house.server.kill_worker(pid)
        with pytest.raises(BROKEN):
            first.read_all()
    seen = eventually(lambda: _statuses_until_settled(house, alice, body), seconds=15)

    assert seen == {409} and TokenUsage.objects.get().billed
    assert post(house, alice, body, "/chat")[0] == 409


def _statuses_until_settled(house: House, alice: Caller, body: Any) -> set[int]:
    """Return what repeats are answered while the hold is open; empty until it is settled."""
    if Hold.objects.filter(state="open").exists():
        assert post(house, alice, body, "/chat")[0] in (409, 503)
        return set()
    return {post(house, alice, body, "/chat")[0]}


def test_the_official_ollama_client_sends_the_header(house: House, alice: Caller) -> None:
    client = official.Client(host=house.server.url, headers={**alice.headers, **NAMED})

    client.chat(model="llama3", messages=MESSAGES)
    with pytest.raises(official.ResponseError) as caught:
        client.chat(model="llama3", messages=MESSAGES)

    assert caught.value.status_code == 409 and str(the_row().request_id) in caught.value.error
