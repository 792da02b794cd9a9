"""The watcher, driven by hand: who left is broken off, and nobody else."""

import os
import select
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import pytest

from gateway.errors import ClientLeft, GatewayBusy
from gateway.upstream.cancellation import Watch, Watcher

pytestmark = pytest.mark.skipif(not hasattr(select, "epoll"), reason="needs epoll")


@pytest.fixture
def watcher() -> Watcher:
    """A watcher whose thread is this test."""
    found = Watcher()
    found._thread = threading.current_thread()
    return found


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """A client's end of a connection, and ours."""
    client, ours = socket.socketpair()
    with client, ours:
        yield client, ours


class Between:
    """An epoll after whose poll something happens, before anybody looks at what it returned."""

    def __init__(self, epoll: Any, happen: Callable[[], None]) -> None:
        self._epoll, self._happen = epoll, happen

    def poll(self, seconds: float) -> list[tuple[int, int]]:
        events: list[tuple[int, int]] = self._epoll.poll(seconds)
        self._happen()
        return events

    def __getattr__(self, name: str) -> Any:
        return getattr(self._epoll, name)


def test_who_left_is_broken_off_and_who_stays_is_not(
    watcher: Watcher, pair: tuple[socket.socket, socket.socket]
) -> None:
    client, ours = pair
    stays, staying = socket.socketpair()
    with stays, staying:
        left, other = Watch(ours), Watch(staying)
        watcher.add(left)
        watcher.add(other)

        client.close()
        watcher._look()

    assert (left.cut, other.cut) == (ClientLeft, None)


def test_a_connection_is_not_taken_for_an_earlier_one_with_its_number(
    watcher: Watcher, pair: tuple[socket.socket, socket.socket]
) -> None:
    """The first leaves, and its number goes to another before the watcher looks whose it was."""
    first_client, first = pair
    second_client, second = socket.socketpair()
    number = first.fileno()
    watches = [Watch(first)]
    watcher.add(watches[0])

    def number_is_given_away() -> None:
        if len(watches) == 1:
            watcher.remove(watches[0])
            os.dup2(second.fileno(), number)
            watches.append(Watch(first))
            watcher.add(watches[1])

    watcher._epoll = Between(watcher._epoll, number_is_given_away)  # type: ignore[assignment]
    first_client.close()
    with closing(second):
        watcher._look()
        assert watches[1].cut is None

    second_client.close()
    watcher._look()
    assert watches[1].cut is ClientLeft, "the second is not watched any more"


def test_what_cannot_be_watched_leaves_nothing_behind(
    watcher: Watcher, pair: tuple[socket.socket, socket.socket]
) -> None:
    _client, ours = pair
    first, second = Watch(ours), Watch(ours)
    watcher.add(first)

    with pytest.raises(FileExistsError):
        watcher.add(second)
    watcher.remove(second)

    assert watcher.running() == [first] and watcher._by_fd == {ours.fileno(): first}


def test_a_watcher_that_could_not_start_starts_with_the_next_request(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    watcher = Watcher()

    def no_thread(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", no_thread)
        with pytest.raises(GatewayBusy):
            watcher.add(Watch(None))
    assert watcher.running() == []

    started: list[str] = []
    monkeypatch.setattr(threading.Thread, "start", lambda thread: started.append(thread.name))
    watcher.add(Watch(None))
    watcher.add(Watch(None))
    assert started == ["hangup"]
