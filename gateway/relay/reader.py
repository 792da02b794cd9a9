"""Read a response in a thread of its own, so that the writing thread can tell silence from an end.

A blocked read cannot be interrupted and resumed. So for clients that get keep-alives while the
model thinks, one thread reads and another writes.
"""

import logging
import queue
import threading
from collections.abc import Generator

from gateway.errors import GatewayBusy
from gateway.upstream.chunk import Chunk

logger = logging.getLogger(__name__)

# How many chunks may wait for a slow client. Then the reading thread waits, and the model server.
CAPACITY = 64
# How long the reading thread waits for space in the queue before it checks for `close`.
LOOK_SECONDS = 0.5


class IdleTimeout(Exception):
    """No chunk came within the timeout."""


class ReaderThread:
    """An iterator over the chunks that a thread reads. `next` raises IdleTimeout, or what the read
    raised. The constructor raises GatewayBusy if no thread can be started."""

    def __init__(self, source: Generator[Chunk, None, None], timeout: float) -> None:
        self._source = source
        self._timeout = timeout
        self._items: queue.Queue[Chunk | Exception | None] = queue.Queue(CAPACITY)
        self._stopped = threading.Event()
        try:
            threading.Thread(target=self._run, name="reader", daemon=True).start()
        except RuntimeError as error:
            logger.error("A response is refused: %s", error)
            raise GatewayBusy() from error

    def __iter__(self) -> "ReaderThread":
        return self

    def __next__(self) -> Chunk:
        try:
            item = self._items.get(timeout=self._timeout)
        except queue.Empty:
            raise IdleTimeout from None
        if item is None:
            raise StopIteration
        if isinstance(item, Exception):
            raise item
        return item

    def close(self) -> None:
        """Let the thread end, as soon as its read returns."""
        self._stopped.set()

    def _run(self) -> None:
        try:
            for chunk in self._source:
                if not self._put(chunk):
                    break
            self._put(None)
        except Exception as error:
            self._put(error)
        finally:
            self._source.close()

    def _put(self, item: Chunk | Exception | None) -> bool:
        while not self._stopped.is_set():
            try:
                self._items.put(item, timeout=LOOK_SECONDS)
                return True
            except queue.Full:
                continue
        return False
