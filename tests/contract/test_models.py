"""Facts about models: listed, loaded, copied, pulled, deleted; queues and disconnects."""

import json
import re
import threading
import time

import pytest

from tests.contract.server import Server
from tests.fakes import faults
from tests.fakes.ollama import FakeOllama
from tests.fakes.script import tokens

pytestmark = pytest.mark.once  # It needs no database.

HELLO = [{"role": "user", "content": "hello"}]
ONE = {"num_predict": 1}


def test_tags(server: Server, chat: str) -> None:
    """/api/tags names each model with its tag, and its digest in hex without "sha256:"."""
    models = {model["name"]: model for model in server.get("/api/tags")["models"]}
    assert chat in models and all(":" in name for name in models)
    assert all(re.fullmatch("[0-9a-f]{64}", model["digest"]) for model in models.values())


def test_show(server: Server, chat: str) -> None:
    """/api/show has details, capabilities, and data for the operator only."""
    found = server.post("/api/show", model=chat).json()
    assert {"details", "model_info", "capabilities", "modelfile"} <= set(found)


def test_older_name(server: Server, chat: str) -> None:
    """`name` is taken where `model` is missing, by show."""
    assert server.post("/api/show", name=chat).status_code == 200


@pytest.mark.parametrize("path", ["/api/generate", "/api/chat"])
def test_load(server: Server, chat: str, path: str) -> None:
    """An empty request loads the model: one object, "load", no counts, whatever `stream` says."""
    server.unload(chat)
    assert chat not in server.loaded()
    found = server.post(path, model=chat)
    assert found.headers["Content-Type"].startswith("application/json")
    said = found.json()
    assert (said["done"], said["done_reason"]) == (True, "load")
    assert not {"eval_count", "prompt_eval_count", "total_duration"} & set(said)
    assert chat in server.loaded()


def test_unload(server: Server, chat: str) -> None:
    """An empty request with keep_alive 0 unloads the model: "unload"."""
    server.load(chat)
    said = server.whole("/api/generate", model=chat, keep_alive=0)
    assert said["done_reason"] == "unload"
    deadline = time.monotonic() + 10
    while chat in server.loaded():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_ps(server: Server, chat: str) -> None:
    """/api/ps lists a loaded model with its context length and until when it stays."""
    server.load(chat)
    [found] = [model for model in server.get("/api/ps")["models"] if model["name"] == chat]
    assert found["context_length"] > 0 and found["expires_at"]


def test_ps_of_copies(server: Server, chat: str) -> None:
    """Names that share weights are one entry of /api/ps: the name that loaded them first."""
    copy = server.copy(chat)
    server.unload(chat)
    server.load(copy)
    server.whole("/api/chat", model=chat, messages=HELLO, options=ONE)
    assert copy in server.loaded() and chat not in server.loaded()
    server.unload(copy)


def test_copy_of_unknown_model(server: Server) -> None:
    """A copy of an unknown model is 404, its name in double quotes."""
    found = server.post("/api/copy", source="nonsuch:1b", destination="nonsuch:2b")
    if found.text == "404 page not found":
        pytest.skip("this server cannot copy a model")
    assert (found.status_code, found.json()["error"]) == (404, 'model "nonsuch:1b" not found')


def test_delete(server: Server, chat: str) -> None:
    """A deleted model is gone, with 200 and an empty body; deleting it again is 404."""
    copy = server.copy(chat)
    found = server.delete(copy)
    assert (found.status_code, found.content) == (200, b"")
    assert server.post("/api/chat", model=copy, messages=HELLO).status_code == 404
    again = server.delete(copy)
    assert (again.status_code, again.json()["error"]) == (404, f"model '{copy}' not found")


def test_delete_while_it_writes(server: Server, chat: str) -> None:
    """A deleted model completes its response, and stays in memory."""
    copy = server.copy(chat)
    server.unload(chat)
    server.load(copy)
    if server.fake:
        steps = tokens("a" * 20, path="/api/chat", model=copy, pause=0.02)
        server.fake.answer("/api/chat", steps, times=1)
    asked = {"model": copy, "messages": HELLO, "options": {"num_predict": 60}}
    with server.open("/api/chat", **asked) as sock, sock.makefile("rb") as reader:
        while b'"done"' not in reader.readline():
            pass
        assert server.delete(copy).status_code == 200
        assert copy in server.loaded()
        assert any(b'"done_reason"' in line for line in reader)
    assert server.post("/api/chat", model=copy, messages=HELLO).status_code == 404
    server.load(chat)
    server.unload(chat)


def test_pull_of_unknown_model(server: Server) -> None:
    """An unknown model is pulled with 200 and then an error line; whole it is 500."""
    name = "contract-nonsuch-model:1b"
    missing = "pull model manifest: file does not exist"
    lines = server.lines("/api/pull", model=name)
    if not server.fake and lines[-1]["error"] != missing:
        pytest.skip(f"the registry could not be asked: {lines[-1]['error'][:60]}")
    assert lines == [{"status": "pulling manifest"}, {"error": missing}]
    assert server.refusal("/api/pull", model=name, stream=False) == (500, missing)


@pytest.mark.scripted
def test_pull_without_registry(server: Server, fake: FakeOllama) -> None:
    """A registry that cannot be reached begins with the same words as an unknown model."""
    fake.answer("/api/pull", faults.registry_unreachable("x"))
    lines = server.lines("/api/pull", model="x")
    assert lines[-1]["error"].startswith("pull model manifest: ")
    assert "file does not exist" not in lines[-1]["error"]


@pytest.mark.scripted
def test_pull(server: Server) -> None:
    """A pull reports its steps in order, `completed` of each layer, and ends with success."""
    lines = server.lines("/api/pull", model="phi3")
    told = [line["status"] for line in lines]
    assert told[0] == "pulling manifest" and told[-2:] == ["writing manifest", "success"]
    layers = [line for line in lines if "digest" in line]
    assert (
        layers and "completed" not in layers[0] and layers[-1]["completed"] == layers[-1]["total"]
    )


# --- Queues ---------------------------------------------------------------------------------------


@pytest.mark.scripted
def test_full_queue(server: Server, fake: FakeOllama, chat: str) -> None:
    """A full queue is 503 with a text of two blanks, and without Retry-After."""
    fake.answer("/api/chat", faults.busy())
    found = server.post("/api/chat", model=chat, messages=HELLO)
    expected = "server busy, please try again.  maximum pending requests exceeded"
    assert (found.status_code, found.json()["error"]) == (503, expected)
    assert "Retry-After" not in found.headers


# --- Disconnects ----------------------------------------------------------------------------------


def test_disconnect_in_mid_stream(server: Server, chat: str) -> None:
    """A disconnect in mid-stream frees the model within a second or two."""
    if server.fake:
        server.fake.answer("/api/chat", tokens("a" * 500, path="/api/chat", pause=0.05), times=1)
    server.load(chat)
    with server.open(
        "/api/chat", model=chat, messages=HELLO, options={"num_predict": 2000}
    ) as sock:
        with sock.makefile("rb") as reader:
            while b'"done"' not in reader.readline():
                pass
    began = time.monotonic()
    server.whole("/api/chat", model=chat, messages=HELLO, options=ONE)
    assert time.monotonic() - began < 3
    if server.fake:
        assert server.fake.requests[-2].left.wait(1)


@pytest.mark.scripted
def test_disconnect_during_a_load(server: Server, fake: FakeOllama, chat: str) -> None:
    """The first disconnect during a load aborts it, and the next request restarts it."""
    fake.memory.seconds = 0.4
    first = server.open("/api/chat", model=chat, messages=HELLO)
    fake.wait_for(1)
    served: list[int] = []
    second = threading.Thread(
        target=lambda: served.append(
            server.post("/api/chat", model=chat, messages=HELLO).status_code
        )
    )
    second.start()
    fake.wait_for(2)
    first.close()
    second.join(5)
    assert served == [200] and [load.aborted for load in fake.memory.loads] == [True, False]


@pytest.mark.scripted
def test_silence_during_a_load(server: Server, fake: FakeOllama, chat: str) -> None:
    """Nothing is sent during a load, not even a status line."""
    fake.memory.seconds = 0.4
    with server.open("/api/chat", model=chat, messages=HELLO) as sock:
        sock.settimeout(0.2)
        with pytest.raises(TimeoutError):
            sock.recv(1)
        sock.settimeout(5)
        assert sock.recv(12) == b"HTTP/1.1 200"


def test_error_lines_are_objects(server: Server) -> None:
    """An error is an object whose `error` is a text."""
    found = server.post("/api/generate", model="nonsuch:1b", prompt="hi")
    assert isinstance(json.loads(found.content)["error"], str)
