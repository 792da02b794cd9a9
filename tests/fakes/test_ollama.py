"""The fake Ollama plays its scripts and notices disconnects."""

import json
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import requests

from tests.fakes.behaviour import VERSION, WORDS
from tests.fakes.ollama import FakeOllama, Received
from tests.fakes.script import (
    OMIT,
    Close,
    End,
    Line,
    Raw,
    Reset,
    Sleep,
    Stall,
    Status,
    Step,
    Wait,
    Wire,
    dribble,
    error_line,
    rendered,
    reply,
    slices,
    tokens,
)
from tests.servers.client import BROKEN, RawClient, Truncated

pytestmark = pytest.mark.once  # It needs no database.

ASK = {"model": "llama3", "prompt": "Why is the sky blue?"}
CHAT = {"model": "llama3", "messages": [{"role": "user", "content": "Why so blue?"}]}


@pytest.fixture(scope="module")
def running() -> Iterator[FakeOllama]:
    with FakeOllama() as fake:
        yield fake


@pytest.fixture
def fake(running: FakeOllama) -> Iterator[FakeOllama]:
    running.reset()
    yield running


@pytest.fixture
def client(fake: FakeOllama) -> Iterator[RawClient]:
    with RawClient(fake.url, timeout=2) as client:
        yield client


def objects(body: bytes) -> list[Any]:
    return [json.loads(line) for line in body.splitlines()]


def stream(client: RawClient, path: str, body: dict[str, Any]) -> list[Any]:
    client.post(path, body)
    return objects(client.read_all())


# --- Good behaviour -------------------------------------------------------------------------


def test_generate_streams_chunks_and_ends_with_the_counts(client: RawClient) -> None:
    *pieces, final = stream(client, "/api/generate", ASK)
    assert [piece["response"] for piece in pieces] == list(WORDS)
    assert (final["prompt_eval_count"], final["eval_count"]) == (5, len(WORDS))
    assert final["done"] and final["done_reason"] == "stop" and not pieces[0]["done"]
    assert client.head is not None
    assert client.head.headers["content-type"] == "application/x-ndjson"


def test_chat_honours_num_predict(client: RawClient) -> None:
    *pieces, final = stream(client, "/api/chat", CHAT | {"options": {"num_predict": 2}})
    assert [piece["message"]["content"] for piece in pieces] == list(WORDS[:2])
    assert (final["eval_count"], final["done_reason"]) == (2, "length")


def test_an_answer_that_is_not_streamed_is_one_object(fake: FakeOllama) -> None:
    whole = requests.post(f"{fake.url}/api/chat", json=CHAT | {"stream": False}, timeout=2).json()
    assert whole["message"]["content"] == "".join(WORDS)
    assert whole["eval_count"] == len(WORDS)


def test_an_empty_prompt_only_loads_the_model(client: RawClient) -> None:
    [loaded] = stream(client, "/api/generate", {"model": "llama3"})
    assert loaded["done_reason"] == "load" and "eval_count" not in loaded


@pytest.mark.parametrize(
    ("path", "body", "status", "error"),
    [
        ("/api/generate", {"model": "x", "prompt": "a"}, 404, "model 'x' not found"),
        ("/api/chat", {"messages": []}, 400, "model is required"),
        (
            "/api/embed",
            {"model": "x", "input": "a"},
            404,
            'model "x" not found, try pulling it first',
        ),
        (
            "/api/generate",
            ASK | {"model": "nomic-embed-text"},
            400,
            '"nomic-embed-text" does not support generate',
        ),
        ("/api/generate", b"", 400, "missing request body"),
    ],
)
def test_rejections_have_ollamas_messages(
    client: RawClient, path: str, body: Any, status: int, error: str
) -> None:
    client.post(path, body)
    assert client.read_head().status == status
    assert json.loads(client.read_all()) == {"error": error}


def test_embeddings_are_the_same_for_the_same_text(client: RawClient) -> None:
    asked = {"model": "nomic-embed-text", "input": ["a b", "c", "a b"]}
    [found] = stream(client, "/api/embed", asked)
    first, second, third = found["embeddings"]
    assert first == third != second
    assert found["prompt_eval_count"] == 5


def test_the_lists_of_models_follow_pull_and_delete(fake: FakeOllama) -> None:
    def names() -> list[str]:
        return [m["name"] for m in requests.get(f"{fake.url}/api/tags", timeout=2).json()["models"]]

    requests.post(f"{fake.url}/api/pull", json={"model": "phi3"}, timeout=2)
    assert "phi3:latest" in names()
    gone = requests.delete(f"{fake.url}/api/delete", json={"model": "phi3"}, timeout=2)
    assert (gone.status_code, gone.content) == (200, b"")
    assert "phi3:latest" not in names()
    assert requests.delete(f"{fake.url}/api/delete", json={"model": "x"}, timeout=2).ok is False


def test_pulling_an_unknown_model_fails_in_the_stream(client: RawClient) -> None:
    lines = stream(client, "/api/pull", {"model": "nobody/knows"})
    assert client.head is not None and client.head.status == 200
    assert lines[-1] == {"error": "pull model manifest: file does not exist"}


def test_show_leaks_what_the_gateway_must_hide(client: RawClient) -> None:
    [shown] = stream(client, "/api/show", {"model": "llama3"})
    assert "/srv/ollama" in shown["modelfile"] and "SECRET" in shown["system"]


def test_the_small_routes_answer(fake: FakeOllama) -> None:
    assert requests.get(fake.url, timeout=2).text == "Ollama is running"
    assert requests.head(fake.url, timeout=2).content == b""
    assert requests.get(f"{fake.url}/api/version", timeout=2).json() == {"version": VERSION}
    assert requests.get(f"{fake.url}/api/ps", timeout=2).json()["models"][0]["size_vram"]
    assert requests.get(f"{fake.url}/api/x", timeout=2).text == "404 page not found"
    assert requests.get(f"{fake.url}/api/chat", timeout=2).status_code == 405


def test_one_connection_carries_many_requests(fake: FakeOllama, client: RawClient) -> None:
    for _ in range(3):
        assert len(stream(client, "/api/generate", ASK)) == len(WORDS) + 1
    assert len(fake.calls("/api/generate")) == 3


# --- Scripts --------------------------------------------------------------------------------


def test_a_script_answers_the_next_requests_then_manners_return(
    fake: FakeOllama, client: RawClient
) -> None:
    fake.answer("/api/chat", reply({"error": "busy"}, 503, Retry_After="1"), times=1)
    client.post("/api/chat", CHAT)
    head = client.read_head()
    assert (head.status, head.headers["retry-after"]) == (503, "1")
    assert client.read_json() == {"error": "busy"}
    assert len(stream(client, "/api/chat", CHAT)) == len(WORDS) + 1


def test_a_function_may_choose_the_script(fake: FakeOllama, client: RawClient) -> None:
    def echo(received: Received) -> list[Step]:
        return tokens([received.json["prompt"]], model=received.json["model"])

    fake.answer("/api/generate", echo)
    assert stream(client, "/api/generate", ASK)[0]["response"] == ASK["prompt"]


def test_counts_may_lie_or_be_missing(fake: FakeOllama, client: RawClient) -> None:
    fake.answer("/api/generate", tokens("abc", prompt=-7, count="9"), times=1)
    fake.answer("/api/generate", tokens("abc", prompt=OMIT, count=OMIT), times=1)
    lie, silence = (stream(client, "/api/generate", ASK)[-1] for _ in range(2))
    assert (lie["prompt_eval_count"], lie["eval_count"]) == (-7, "9")
    assert silence["done"] and not {"prompt_eval_count", "eval_count"} & set(silence)


def test_thinking_and_tool_calls_come_in_chunks(fake: FakeOllama, client: RawClient) -> None:
    call = {"function": {"name": "look", "arguments": {"at": "sky"}}}
    script = tokens(["Ah"], path="/api/chat", thinking=["Hm"], tool_calls=[call])
    fake.answer("/api/chat", script)
    thought, said, called, final = stream(client, "/api/chat", CHAT)
    assert thought["message"]["thinking"] == "Hm"
    assert said["message"]["content"] == "Ah"
    assert called["message"]["tool_calls"] == [call]
    assert final["eval_count"] == 2


def test_an_error_line_ends_a_stream_properly(fake: FakeOllama, client: RawClient) -> None:
    fake.answer("/api/chat", tokens("ab", done=False), error_line("out of memory"))
    assert stream(client, "/api/chat", CHAT)[-1] == {"error": "out of memory"}


def test_a_line_may_come_in_slices(fake: FakeOllama, client: RawClient) -> None:
    fake.answer("/api/chat", slices(b'{"a":"\xc3\xa9"}\n', 3, pause=0.01))
    assert stream(client, "/api/chat", CHAT) == [{"a": "é"}]


def test_nothing_is_sent_before_the_first_line(fake: FakeOllama, client: RawClient) -> None:
    go = threading.Event()
    fake.answer("/api/chat", Wait(go), Line("late"))
    client.post("/api/chat", CHAT)
    client.timeout = 0.1
    with pytest.raises(TimeoutError):
        client.read_head()
    go.set()
    client.timeout = 2
    assert client.read_line() == b"late"


@pytest.mark.parametrize(("ending", "error"), [(Close(), Truncated), (Reset(), ConnectionError)])
def test_a_response_may_be_interrupted(
    fake: FakeOllama, client: RawClient, ending: Step, error: type[Exception]
) -> None:
    fake.answer("/api/chat", Line("one"), Raw(b"tw"), ending)
    client.post("/api/chat", CHAT)
    assert client.read_line() == b"one"
    with pytest.raises(error):
        client.read_all()


def test_a_reply_may_be_cut_at_every_byte(fake: FakeOllama) -> None:
    whole = rendered(tokens(["a"]))
    for cut in range(0, len(whole), 25):
        fake.answer("/api/chat", Wire(whole[:cut]), Reset(), times=1)
        with RawClient(fake.url, timeout=2) as client, pytest.raises(BROKEN):
            client.post("/api/chat", CHAT)
            client.read_all()


def test_raw_bytes_may_replace_http(fake: FakeOllama, client: RawClient) -> None:
    fake.answer("/api/chat", Status(), Wire(b"zz\r\nnot hexadecimal\r\n"))
    client.post("/api/chat", CHAT)
    assert client.read_head().status == 200
    with pytest.raises(ValueError, match="zz"):
        client.read_all()


def test_headers_may_arrive_slowly(fake: FakeOllama, client: RawClient) -> None:
    fake.answer("/api/chat", dribble(b"HTTP/1.1 204 Nothing\r\n\r\n", size=6, pause=0.01))
    client.post("/api/chat", CHAT)
    assert client.read_head().status == 204


def test_an_interim_response_may_come_first(fake: FakeOllama, client: RawClient) -> None:
    script = [Wire(b"HTTP/1.1 100 Continue\r\n\r\n"), Line("yes"), End()]
    fake.answer("/api/chat", script)
    client.post("/api/chat", CHAT)
    assert [client.read_head().status, client.read_head().status] == [100, 200]
    assert client.read_all() == b"yes\n"


def test_a_body_may_end_with_the_connection(fake: FakeOllama, client: RawClient) -> None:
    fake.answer("/api/chat", Status(chunked=False), Line("one"), Raw(b"two"))
    client.post("/api/chat", CHAT)
    assert client.read_all() == b"one\ntwo"


# --- Connections ----------------------------------------------------------------------------


def test_a_request_is_recorded(fake: FakeOllama, client: RawClient) -> None:
    client.post("/api/generate?a=b", ASK, key="secret")
    client.read_all()
    [received] = fake.requests
    assert (received.method, received.path) == ("POST", "/api/generate")
    assert received.target == "/api/generate?a=b"
    assert received.headers["authorization"] == "Bearer secret"
    assert received.json == ASK


def test_a_chunked_body_is_read(fake: FakeOllama) -> None:
    parts = [b'{"model":"llama3",', b'"prompt":"Hi"}']
    assert requests.post(f"{fake.url}/api/generate", data=iter(parts), timeout=2).ok
    assert fake.requests[0].body == b"".join(parts)


@pytest.mark.parametrize("leave", ["close", "reset"])
@pytest.mark.parametrize("wait", [Stall(), Sleep(5), Wait(threading.Event())])
def test_a_disconnect_is_noticed_at_once(
    fake: FakeOllama, client: RawClient, leave: str, wait: Step
) -> None:
    fake.answer("/api/generate", tokens("ab", done=False), wait)
    client.post("/api/generate", ASK)
    for _ in range(2):
        client.read_line()
    [received] = fake.wait_for(1, "/api/generate")
    assert not received.left.is_set() and fake.in_flight == 1
    gone = time.monotonic()
    getattr(client, leave)()
    assert received.left.wait(1)
    assert received.left_at is not None and received.left_at - gone < 0.1
    assert received.lines_sent == 2 and not received.finished.is_set()
    fake.wait_idle(1)


def test_a_disconnect_during_a_large_response_is_noticed(
    fake: FakeOllama, client: RawClient
) -> None:
    fake.answer("/api/generate", Raw(b"x" * 20_000_000))
    client.post("/api/generate", ASK)
    client.read_head()
    client.close()
    [received] = fake.requests
    assert received.left.wait(1)


def test_a_close_after_the_last_line_is_no_disconnect(fake: FakeOllama) -> None:
    for _ in range(20):
        with RawClient(fake.url) as client:
            client.post("/api/generate", ASK)
            while not client.read_json()["done"]:
                pass
        assert fake.in_flight == 0
    assert all(received.finished.wait(1) for received in fake.requests)
    assert not any(received.left.is_set() for received in fake.requests)


def test_waiting_for_missing_requests_fails(fake: FakeOllama) -> None:
    with pytest.raises(AssertionError, match="0 of 1"):
        fake.wait_for(1, timeout=0.05)


def test_a_server_that_is_down_refuses_connections_until_it_is_up(fake: FakeOllama) -> None:
    fake.down()
    with pytest.raises(ConnectionRefusedError):
        RawClient(fake.url)
    fake.up()
    with RawClient(fake.url) as client:
        assert len(stream(client, "/api/generate", ASK)) == len(WORDS) + 1


def test_a_cut_ends_every_response_without_a_disconnect(
    fake: FakeOllama, client: RawClient
) -> None:
    fake.answer("/api/generate", Line("one"), Stall())
    client.post("/api/generate", ASK)
    assert client.read_line() == b"one"
    fake.cut()
    with pytest.raises(BROKEN):
        client.read_line()
    assert not fake.requests[0].left.is_set() and fake.in_flight == 0


def test_250_connections_are_served_at_once(fake: FakeOllama) -> None:
    go = threading.Event()
    fake.answer("/api/generate", Line("first"), Wait(go), tokens("ab"))
    clients = [RawClient(fake.url) for _ in range(250)]
    for client in clients:
        client.post("/api/generate", ASK)
    assert len(fake.wait_for(250)) == fake.in_flight == fake.max_in_flight == 250
    go.set()
    assert {len(objects(client.read_all()[6:])) for client in clients} == {3}
    fake.wait_idle()
    for client in clients:
        client.close()
