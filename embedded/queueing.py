"""A fixed number of places, and a line of those who wait for one."""

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Condition

# How often one who waits looks whether its client is still there, in seconds.
LOOK_EVERY = 0.1


class ClientDisconnected(Exception):
    """Nobody is waiting for the answer any more."""


class QueueFull(Exception):
    """Too many are waiting already."""


class Places:
    """First come, first served.

    llama.cpp has such a line too, but nobody can leave it before his turn.
    """

    def __init__(self, count: int, longest_line: int = 512) -> None:
        self._free = count
        self._count = count
        self._longest_line = longest_line
        self._line: deque[object] = deque()
        self._changed = Condition()

    @property
    def taken(self) -> int:
        return self._count - self._free

    @property
    def waiting(self) -> int:
        return len(self._line)

    @contextmanager
    def one(self, wanted: Callable[[], bool]) -> Iterator[None]:
        """Hold one place; raise ClientDisconnected when `wanted` says no first, or QueueFull."""
        self._take(wanted)
        try:
            yield
        finally:
            with self._changed:
                self._free += 1
                self._changed.notify_all()

    def _take(self, wanted: Callable[[], bool]) -> None:
        ticket = object()
        with self._changed:
            if len(self._line) >= self._longest_line:
                raise QueueFull
            self._line.append(ticket)
            try:
                while self._line[0] is not ticket or not self._free:
                    self._changed.wait(LOOK_EVERY)
                    if not wanted():
                        raise ClientDisconnected
                self._free -= 1
            finally:
                self._line.remove(ticket)
                self._changed.notify_all()
