"""The model server's last report, renewed by one call at a time in each process."""

import contextlib
import threading
import time
from collections.abc import Callable
from typing import Generic, TypeVar

from gateway.errors import ClientDisconnected, GatewayBusy, GatewayError
from gateway.scheduling.shared_call import SharedCall
from gateway.upstream.cancellation import Cancellation

T = TypeVar("T")
NEVER = float("-inf")


class Remembered(Generic[T]):
    """The last result of a call, and its time. `ask` is called without a lock held."""

    def __init__(self, ask: Callable[[Cancellation], T]) -> None:
        self._ask = ask
        self._lock = threading.Lock()
        self._call: SharedCall[T] | None = None
        self._value: tuple[float, T] | None = None
        self._failure: tuple[float, GatewayError] | None = None
        self._asked_at = NEVER
        # Raised by `forget`: the result of a call that began before it is dropped.
        self._generation = 0

    def known(self, within: float = float("inf")) -> T | None:
        """Return the result if it is at most so many seconds old, without a call."""
        found = self._value
        return found[1] if found and time.monotonic() - found[0] <= within else None

    def failure(self, within: float) -> GatewayError | None:
        """Return the error of the last call, if it failed at most so many seconds ago."""
        found = self._failure
        return found[1] if found and time.monotonic() - found[0] <= within else None

    def get(self, cancellation: Cancellation, within: float, timeout: float | None = None) -> T:
        """Return a result that is at most `within` seconds old; if need be, call and wait.

        Raises why the Cancellation was broken off, what the call raised, or StillRunning after
        `timeout` seconds.
        """
        found = self.known(within)
        if found is not None:
            return found
        if cancellation.reason:
            raise cancellation.reason()
        call, event = self._join()
        return call.wait(event, cancellation, timeout)

    def refresh(self, every: float) -> None:
        """Call in the background, unless that was done less than `every` seconds ago."""
        with self._lock:
            is_running = self._call is not None and not self._call.is_over
            if not is_running and time.monotonic() - self._asked_at >= every:
                self._call = self._new_call()
                # The present request has the old result; a later one may find a thread.
                with contextlib.suppress(GatewayBusy):
                    self._call.start()

    def remember(self, value: T) -> None:
        """Store a result that another call brought."""
        self._value, self._failure = (time.monotonic(), value), None

    def note_failure(self, error: GatewayError) -> None:
        self._failure = (time.monotonic(), error)

    def forget(self) -> None:
        """Drop the result: the models were changed."""
        with self._lock:
            self._generation += 1
            self._value = self._call = None
            self._asked_at = NEVER

    def _join(self) -> tuple[SharedCall[T], threading.Event]:
        """Join the call in progress, or a new one."""
        with self._lock:
            event = self._call.join() if self._call is not None else None
            if self._call is None or event is None:
                self._call = self._new_call()
                event = self._call.start_and_join()
            return self._call, event

    def _new_call(self) -> SharedCall[T]:
        generation = self._generation
        self._asked_at = time.monotonic()
        return SharedCall(lambda cancellation: self._asked(cancellation, generation))

    def _asked(self, cancellation: Cancellation, generation: int) -> T:
        try:
            value = self._ask(cancellation)
        except GatewayError as error:
            # If all waiting requests have left, the failure says nothing about the model server.
            if generation == self._generation and not isinstance(error, ClientDisconnected):
                self.note_failure(error)
            raise
        if generation == self._generation:
            self.remember(value)
        return value
