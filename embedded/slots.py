"""A fixed number of slots and a queue of requests that wait for one."""

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Condition

# Seconds between two checks whether the client of a queued request is still connected.
CHECK_INTERVAL = 0.1
MAX_QUEUED = 512


class ClientDisconnected(Exception):
    """The client closed its connection, or the server is stopping."""


class QueueFull(Exception):
    """The queue has no room for another request."""


class Slots:
    """Slots are given in the order of arrival.

    llama.cpp has a queue too, but a request cannot leave that one before its turn.
    """

    def __init__(self, count: int, max_queued: int = MAX_QUEUED) -> None:
        self._free = count
        self._count = count
        self._max_queued = max_queued
        self._queue: deque[object] = deque()
        self._changed = Condition()

    @property
    def in_use(self) -> int:
        return self._count - self._free

    @property
    def queued(self) -> int:
        return len(self._queue)

    @contextmanager
    def acquire(self, is_wanted: Callable[[], bool]) -> Iterator[None]:
        """Hold one slot.

        Raises QueueFull, or ClientDisconnected when `is_wanted` returns False in the queue.
        """
        self._wait(is_wanted)
        try:
            yield
        finally:
            with self._changed:
                self._free += 1
                self._changed.notify_all()

    def _wait(self, is_wanted: Callable[[], bool]) -> None:
        ticket = object()
        with self._changed:
            if len(self._queue) >= self._max_queued:
                raise QueueFull
            self._queue.append(ticket)
            try:
                while self._queue[0] is not ticket or not self._free:
                    self._changed.wait(CHECK_INTERVAL)
                    if not is_wanted():
                        raise ClientDisconnected
                self._free -= 1
            finally:
                self._queue.remove(ticket)
                self._changed.notify_all()
