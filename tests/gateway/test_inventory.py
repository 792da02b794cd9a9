"""What is known of the model server's models: asked once for all, and never in a customer's way."""

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from gateway.errors import ClientDisconnected, GatewayBusy, ModelNotFound, UpstreamDown
from gateway.scheduling import inventory as inventories
from gateway.scheduling.hosts import host
from gateway.scheduling.inventory import HostInventory, inventory
from gateway.upstream.cancellation import Cancellation
from tests.fakes.ollama import FakeOllama
from tests.fakes.script import Sleep, Stall, reply

pytestmark = pytest.mark.once  # It needs no database.

LLAMA, MISTRAL = "llama3:latest", "mistral:latest"
SOON = 2.0


@pytest.fixture
def known(ollama: FakeOllama) -> HostInventory:
    return inventory()


def eventually(condition: Callable[[], Any], seconds: float = SOON) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come true"
        time.sleep(0.01)


def in_threads(count: int, do: Callable[[], Any]) -> list[Any]:
    """Do it in many threads at once; return what came of it, an error too."""
    found: list[Any] = []

    def one() -> None:
        try:
            found.append(do())
        except Exception as error:
            found.append(error)

    threads = [threading.Thread(target=one) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    return found


def age(known: HostInventory, monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """Let what is known grow so old."""
    now = time.monotonic
    monkeypatch.setattr("gateway.scheduling.remembered.time.monotonic", lambda: now() + seconds)


# --- Installed ------------------------------------------------------------------------------------


def test_many_who_ask_at_once_have_one_look(known: HostInventory, ollama: FakeOllama) -> None:
    ollama.answer("/api/tags", Sleep(0.2), reply({"models": [{"name": LLAMA}]}))

    found = in_threads(
        20, lambda: (known.find(LLAMA, Cancellation(None)), known.find("x:1", Cancellation(None)))
    )

    assert found == [(True, False)] * 20
    assert len(ollama.calls("/api/tags")) == 1


def test_a_model_that_is_missing_is_looked_for_once_in_an_interval(
    known: HostInventory, ollama: FakeOllama, settings: Any
) -> None:
    assert [known.find("nobody:1b", Cancellation(None)) for _ in range(50)] == [False] * 50
    assert len(ollama.calls("/api/tags")) == 1

    settings.INVENTORY_SECONDS = 0.01
    time.sleep(0.02)
    ollama.models.append("nobody:1b")

    assert known.find("nobody:1b", Cancellation(None))


def test_a_model_that_was_there_does_not_wait_for_a_look(
    known: HostInventory, ollama: FakeOllama, monkeypatch: pytest.MonkeyPatch
) -> None:
    known.find(LLAMA, Cancellation(None))
    ollama.answer("/api/tags", Stall())
    age(known, monkeypatch, inventories.INSTALLED_REFRESHED + 1)

    assert [known.installed(LLAMA) for _ in range(20)] == [True] * 20

    ollama.wait_for(2, "/api/tags")
    time.sleep(0.1)
    assert len(ollama.calls("/api/tags")) == 2, "more than one look in the background"


def test_a_model_is_not_believed_to_be_there_for_ever(
    known: HostInventory, ollama: FakeOllama, monkeypatch: pytest.MonkeyPatch
) -> None:
    known.find(LLAMA, Cancellation(None))
    age(known, monkeypatch, inventories.INSTALLED_TRUSTED + 1)
    ollama.models.clear()

    assert known.installed(LLAMA) is None
    assert not known.find(LLAMA, Cancellation(None))


def test_a_model_that_runs_elsewhere_is_not_here(known: HostInventory, ollama: FakeOllama) -> None:
    remote = {"name": "gpt:20b", "remote_model": "gpt", "remote_host": "https://ollama.com"}
    ollama.answer("/api/tags", reply({"models": [remote]}))

    assert not known.find("gpt:20b", Cancellation(None))


def test_a_model_server_that_is_down_is_said_to_be(
    known: HostInventory, ollama: FakeOllama
) -> None:
    ollama.down()

    with pytest.raises(UpstreamDown):
        known.find(LLAMA, Cancellation(None))

    ollama.up()
    assert known.find(LLAMA, Cancellation(None)), "its return is noticed at once"


def test_a_silent_listing_makes_no_model_vanish(
    known: HostInventory, ollama: FakeOllama, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inventories, "LOOK_SECONDS", 0.1)
    ollama.answer("/api/tags", Stall())

    assert known.find(LLAMA, Cancellation(None))

    began = time.monotonic()
    assert in_threads(20, lambda: known.find(LLAMA, Cancellation(None))) == [True] * 20
    assert time.monotonic() - began < 0.1, "only the first one waits"


@pytest.mark.parametrize(
    "listing", [reply("<html>"), reply({"error": "x"}, 500), reply({"done": True})]
)
def test_a_listing_that_cannot_be_read_makes_no_model_vanish(
    known: HostInventory, ollama: FakeOllama, listing: Any
) -> None:
    ollama.answer("/api/tags", listing)

    assert known.find(LLAMA, Cancellation(None))


def test_a_look_that_nobody_waits_for_any_more_is_given_up(
    known: HostInventory, ollama: FakeOllama
) -> None:
    ollama.answer("/api/tags", Stall())
    watches = [Cancellation(None) for _ in range(4)]
    left = iter(watches)

    def leave() -> None:
        ollama.wait_for(1, "/api/tags")
        for cancellation in watches:
            cancellation.cancel(ClientDisconnected)

    leaving = threading.Thread(target=leave)
    leaving.start()

    found = in_threads(4, lambda: known.tags.get(next(left), 1.0))
    leaving.join(5)

    assert [type(one) for one in found] == [ClientDisconnected] * 4
    eventually(lambda: ollama.open_looks == 0)


def test_who_stays_keeps_a_look_alive(known: HostInventory, ollama: FakeOllama) -> None:
    ollama.answer("/api/tags", Sleep(0.3), reply({"models": [{"name": LLAMA}]}))
    leaver, stayer = Cancellation(None), Cancellation(None)
    watches = iter([leaver, stayer])
    threading.Timer(0.1, leaver.cancel, [ClientDisconnected]).start()

    found = in_threads(2, lambda: known.find(LLAMA, next(watches)))

    assert sorted(map(type, found), key=str) == sorted([ClientDisconnected, bool], key=str)
    assert len(ollama.calls("/api/tags")) == 1


def test_who_left_already_begins_no_look(known: HostInventory, ollama: FakeOllama) -> None:
    cancellation = Cancellation(None)
    cancellation.cancel(ClientDisconnected)

    with pytest.raises(ClientDisconnected):
        known.find(LLAMA, cancellation)

    assert ollama.looks == []


def test_what_was_forgotten_is_not_told_by_a_look_from_before(
    known: HostInventory, ollama: FakeOllama
) -> None:
    """Somebody lists the models while another deletes one."""
    ollama.answer("/api/tags", Sleep(0.2), reply({"models": [{"name": LLAMA}]}), times=1)
    lists = threading.Thread(target=lambda: known.find(LLAMA, Cancellation(None)))
    lists.start()
    ollama.wait_for(1, "/api/tags")
    ollama.models.clear()
    known.forget()
    lists.join(5)

    assert not known.find(LLAMA, Cancellation(None))


def test_without_a_thread_for_the_look_nothing_is_known(
    known: HostInventory, ollama: FakeOllama, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_thread(*_args: Any) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", no_thread)
        with pytest.raises(GatewayBusy):
            known.tags.get(Cancellation(None), 1.0)

        known.tags.refresh(0.0)
        assert known.find(LLAMA, Cancellation(None)), "it is left to the model server"

    assert not known.find("nobody:1b", Cancellation(None)), "the next one looks again"


# --- In memory ------------------------------------------------------------------------------------


def test_a_model_in_memory_is_not_loaded(ollama: FakeOllama) -> None:
    ollama.memory.models = [LLAMA]

    host().loads.ensure(LLAMA, Cancellation(None))

    assert ollama.requests == [] and ollama.memory.loads == []


def test_a_model_that_is_not_in_memory_is_loaded_once_for_all(ollama: FakeOllama) -> None:
    ollama.memory.models, ollama.memory.seconds = [LLAMA], 0.2

    assert in_threads(8, lambda: host().loads.ensure(MISTRAL, Cancellation(None))) == [None] * 8

    [load] = ollama.requests
    assert (load.path, load.json) == ("/api/embed", {"model": MISTRAL, "input": []})
    assert inventory().loaded(MISTRAL)


def test_another_name_of_the_same_weights_is_loaded_once(ollama: FakeOllama) -> None:
    """Ollama lists a runner under the name that loaded it."""
    ollama.memory.models = [LLAMA]
    ollama.answer("/api/ps", reply({"models": [{"name": LLAMA}]}))

    for _ in range(5):
        host().loads.ensure(MISTRAL, Cancellation(None))
    assert len(ollama.requests) == 1

    ollama.answer("/api/ps", reply({"models": [{"name": "phi3:latest"}]}))
    inventory().ps.forget()
    host().loads.ensure(MISTRAL, Cancellation(None))

    assert len(ollama.requests) == 2, "another runner is there now"


def test_a_copy_of_a_model_in_memory_is_in_memory(ollama: FakeOllama) -> None:
    entries = [{"name": name, "digest": "d1"} for name in (LLAMA, MISTRAL)]
    ollama.answer("/api/tags", reply({"models": entries}))
    ollama.answer("/api/ps", reply({"models": entries[:1]}))
    inventory().find(MISTRAL, Cancellation(None))

    host().loads.ensure(MISTRAL, Cancellation(None))

    assert ollama.requests == []


def test_a_load_that_fails_fails_for_all_who_wait(ollama: FakeOllama) -> None:
    ollama.memory.models = []
    ollama.answer("/api/embed", Sleep(0.2), reply({"error": "not enough memory"}, 500))

    found = in_threads(5, lambda: host().loads.ensure(MISTRAL, Cancellation(None)))

    assert {getattr(error, "code", error) for error in found} == {"upstream_error"}
    assert len(ollama.requests) == 1


@pytest.mark.parametrize("listing", [reply("<html>"), reply({"error": "x"}, 500), reply({})])
def test_where_the_memory_cannot_be_read_nothing_is_loaded(
    ollama: FakeOllama, listing: Any
) -> None:
    ollama.answer("/api/ps", listing)

    host().loads.ensure(MISTRAL, Cancellation(None))

    assert ollama.requests == []


def test_where_the_memory_is_silent_the_model_is_loaded(
    ollama: FakeOllama, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It hangs while Ollama waits for a model to leave the memory."""
    monkeypatch.setattr(inventories, "LOOK_SECONDS", 0.1)
    monkeypatch.setattr("gateway.scheduling.loads.LOOK_SECONDS", 0.1)
    ollama.answer("/api/ps", Stall())

    host().loads.ensure(MISTRAL, Cancellation(None))

    assert [call.path for call in ollama.requests] == ["/api/embed"]


def test_a_load_that_is_refused_is_left_to_the_request(ollama: FakeOllama) -> None:
    ollama.memory.models = []
    ollama.answer("/api/embed", reply({"error": "no"}, 400))

    host().loads.ensure(MISTRAL, Cancellation(None))


def test_an_operator_is_told_how_a_load_was_refused(ollama: FakeOllama) -> None:
    with pytest.raises(ModelNotFound):
        host().loads.load("nobody:1b", Cancellation(None))


def test_a_load_goes_on_when_all_who_waited_have_left(ollama: FakeOllama) -> None:
    ollama.memory.models, ollama.memory.seconds = [], 0.3
    cancellation = Cancellation(None)
    threading.Timer(0.1, cancellation.cancel, [ClientDisconnected]).start()

    with pytest.raises(ClientDisconnected):
        host().loads.ensure(MISTRAL, cancellation)

    eventually(lambda: ollama.memory.models == [MISTRAL])
    assert not ollama.memory.loads[0].aborted


def test_an_unload_is_known_at_once(ollama: FakeOllama) -> None:
    ollama.memory.models = [LLAMA]
    assert inventory().find_loaded(LLAMA, Cancellation(None))

    host().loads.unload(LLAMA, Cancellation(None))

    assert ollama.requests[-1].json == {"model": LLAMA, "keep_alive": 0}
    assert not inventory().find_loaded(LLAMA, Cancellation(None))


# --- Contexts -------------------------------------------------------------------------------------


def test_the_context_is_that_of_the_memory_or_else_of_the_model(ollama: FakeOllama) -> None:
    details = {"context_length": 131_072}
    entries = [{"name": name, "details": details} for name in (LLAMA, MISTRAL)]
    ollama.answer("/api/tags", reply({"models": [*entries, {"name": "odd:1b"}]}))
    ollama.answer("/api/ps", reply({"models": [entries[0] | {"context_length": 4096}]}))
    assert inventories.effective_context(LLAMA) is None, "nothing is known yet"

    inventory().find(LLAMA, Cancellation(None))
    inventory().find_loaded(LLAMA, Cancellation(None))

    found = [inventories.effective_context(name) for name in (LLAMA, MISTRAL, "odd:1b", "x:1")]
    assert found == [4096, 131_072, None, None]


@pytest.mark.parametrize("nonsense", [-1, 0, True, "4096", 1.5, None, [4096]])
def test_a_context_that_cannot_be_is_none(ollama: FakeOllama, nonsense: Any) -> None:
    ollama.answer("/api/ps", reply({"models": [{"name": LLAMA, "context_length": nonsense}]}))
    inventory().find_loaded(LLAMA, Cancellation(None))

    assert inventories.effective_context(LLAMA) is None
