"""The disconnect_monitor, driven by hand: who left is broken off, and nobody else."""

import os
import select
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import pytest

from gateway.errors import ClientDisconnected, GatewayBusy
from gateway.upstream.cancellation import Cancellation, DisconnectMonitor

pytestmark = pytest.mark.skipif(not hasattr(select, "epoll"), reason="needs epoll")


@pytest.fixture
def disconnect_monitor() -> DisconnectMonitor:
    """A disconnect_monitor whose thread is this test."""
    found = DisconnectMonitor()
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
    disconnect_monitor: DisconnectMonitor, pair: tuple[socket.socket, socket.socket]
) -> None:
    client, ours = pair
    stays, staying = socket.socketpair()
    with stays, staying:
        left, other = Cancellation(ours), Cancellation(staying)
        disconnect_monitor.add(left)
        disconnect_monitor.add(other)

        client.close()
        disconnect_monitor._look()

    assert (left.reason, other.reason) == (ClientDisconnected, None)


def test_a_connection_is_not_taken_for_an_earlier_one_with_its_number(
    disconnect_monitor: DisconnectMonitor, pair: tuple[socket.socket, socket.socket]
) -> None:
    """The first leaves, and its number goes to another before the disconnect_monitor looks whose it
    was."""
    first_client, first = pair
    second_client, second = socket.socketpair()
    number = first.fileno()
    watches = [Cancellation(first)]
    disconnect_monitor.add(watches[0])

    def number_is_given_away() -> None:
        if len(watches) == 1:
            disconnect_monitor.remove(watches[0])
            os.dup2(second.fileno(), number)
            watches.append(Cancellation(first))
            disconnect_monitor.add(watches[1])

    disconnect_monitor._epoll = Between(disconnect_monitor._epoll, number_is_given_away)  # type: ignore[assignment]
    first_client.close()
    with closing(second):
        disconnect_monitor._look()
        assert watches[1].reason is None

    second_client.close()
    disconnect_monitor._look()
    assert watches[1].reason is ClientDisconnected, "the second is not watched any more"


def test_what_cannot_be_watched_leaves_nothing_behind(
    disconnect_monitor: DisconnectMonitor, pair: tuple[socket.socket, socket.socket]
) -> None:
    _client, ours = pair
    first, second = Cancellation(ours), Cancellation(ours)
    disconnect_monitor.add(first)

    with pytest.raises(FileExistsError):
        disconnect_monitor.add(second)
    disconnect_monitor.remove(second)

    assert disconnect_monitor.running() == [first] and disconnect_monitor._by_fd == {
        ours.fileno(): first
    }


def test_a_watcher_that_could_not_start_starts_with_the_next_request(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    disconnect_monitor = DisconnectMonitor()

    def no_thread(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", no_thread)
        with pytest.raises(GatewayBusy):
            disconnect_monitor.add(Cancellation(None))
    assert disconnect_monitor.running() == []

    started: list[str] = []
    monkeypatch.setattr(threading.Thread, "start", lambda thread: started.append(thread.name))
    disconnect_monitor.add(Cancellation(None))
    disconnect_monitor.add(Cancellation(None))
    assert started == ["disconnects"]
