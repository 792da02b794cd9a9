"""One call to the model server, for all requests that wait for its result.

The call has a thread and a connection of its own, so no client's disconnect ends it for the others.
A waiting request may leave, for every reason for which a response is cancelled.
"""

import logging
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

from gateway.errors import ClientDisconnected, GatewayBusy, GatewayError
from gateway.upstream.cancellation import Cancellation, disconnect_monitor

logger = logging.getLogger(__name__)

T = TypeVar("T")


class StillRunning(Exception):
    """The result did not come within the timeout."""


class SharedCall(Generic[T]):
    """A call in progress. `outlives_waiters`: it continues when all waiting requests have left."""

    def __init__(
        self, work: Callable[[Cancellation], T], *, outlives_waiters: bool = False
    ) -> None:
        self._work = work
        self._outlives_waiters = outlives_waiters
        self._cancellation = Cancellation(None)
        self._lock = threading.Lock()
        self._waiting: set[threading.Event] = set()
        self._result: T | None = None
        self._error: GatewayError | None = None
        # No request may join any more: the call has ended, or was cancelled because all had left.
        self.is_over = False
        self._has_ended = False

    def start(self) -> None:
        """Start, with no request waiting yet; raise GatewayBusy if no thread can be started."""
        try:
            threading.Thread(target=self._run, name="shared-call", daemon=True).start()
        except RuntimeError as error:
            self.is_over = True
            logger.error("A call to the model server is not made: %s", error)
            raise GatewayBusy() from error

    def start_and_join(self) -> threading.Event:
        """Start, and wait as the first request; raise GatewayBusy."""
        event = threading.Event()
        self._waiting.add(event)
        self.start()
        return event

    def join(self) -> threading.Event | None:
        """Join the waiting requests; None if the call is over."""
        event = threading.Event()
        with self._lock:
            if self.is_over:
                return None
            self._waiting.add(event)
        return event

    def wait(
        self, event: threading.Event, cancellation: Cancellation, seconds: float | None = None
    ) -> T:
        """Return the result to a request that joined.

        Raises the Cancellation's reason, what the call raised, or StillRunning.
        """
        try:
            with cancellation.notifies(event):
                event.wait(seconds)
        finally:
            self._leave(event)
        if self._has_ended and not cancellation.reason:
            return self._outcome()
        if cancellation.reason:
            raise cancellation.reason()
        raise StillRunning

    def _leave(self, event: threading.Event) -> None:
        with self._lock:
            self._waiting.discard(event)
            is_last = not self._waiting and not self.is_over and not self._outlives_waiters
            self.is_over = self.is_over or is_last
        if is_last:
            self._cancellation.cancel(ClientDisconnected)

    def _outcome(self) -> T:
        if self._error is not None:
            # Without its traceback, which would grow with each request that raises it.
            raise self._error.with_traceback(None)
        return self._result  # type: ignore[return-value]

    def _run(self) -> None:
        try:
            disconnect_monitor.add(self._cancellation)
            self._result = self._work(self._cancellation)
        except GatewayError as error:
            self._error = error
        except Exception:
            logger.exception("A call to the model server failed")
            self._error = GatewayError()
        finally:
            self._cancellation.detach()
            self._end()

    def _end(self) -> None:
        with self._lock:
            self.is_over = self._has_ended = True
            for event in self._waiting:
                event.set()
