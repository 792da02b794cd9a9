"""What the model server said a moment ago, asked anew by one call at a time in each process."""

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
    """The last result of a question, and when it came. `ask` is called without a lock held."""

    def __init__(self, ask: Callable[[Cancellation], T]) -> None:
        self._ask = ask
        self._lock = threading.Lock()
        self._call: SharedCall[T] | None = None
        self._value: tuple[float, T] | None = None
        self._failure: tuple[float, GatewayError] | None = None
        self._asked_at = NEVER
        # Raised by `forget`: a call that began before it has nothing to say any more.
        self._generation = 0

    def known(self, within: float = float("inf")) -> T | None:
        """Return what was said at most so many seconds ago, without asking."""
        found = self._value
        return found[1] if found and time.monotonic() - found[0] <= within else None

    def failure(self, within: float) -> GatewayError | None:
        """Return how the last question failed, if it did, at most so many seconds ago."""
        found = self._failure
        return found[1] if found and time.monotonic() - found[0] <= within else None

    def get(self, cancellation: Cancellation, within: float, timeout: float | None = None) -> T:
        """Return what was said at most `within` seconds ago; ask, and wait for it, if need be.

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
        """Ask in the background, unless that was done less than `every` seconds ago."""
        with self._lock:
            is_running = self._call is not None and not self._call.is_over
            if not is_running and time.monotonic() - self._asked_at >= every:
                self._call = self._new_call()
                # Whoever asked has what is known; a later one finds a thread.
                with contextlib.suppress(GatewayBusy):
                    self._call.start()

    def remember(self, value: T) -> None:
        """Take note of what was learned on another way."""
        self._value, self._failure = (time.monotonic(), value), None

    def note_failure(self, error: GatewayError) -> None:
        self._failure = (time.monotonic(), error)

    def forget(self) -> None:
        """Ask anew before the next answer: something was changed."""
        with self._lock:
            self._generation += 1
            self._value = self._call = None
            self._asked_at = NEVER

    def _join(self) -> tuple[SharedCall[T], threading.Event]:
        """Wait for the call under way, or for a new one."""
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
            # Where all who waited have left, nothing is known of the model server.
            if generation == self._generation and not isinstance(error, ClientDisconnected):
                self.note_failure(error)
            raise
        if generation == self._generation:
            self.remember(value)
        return value
