"""Detect that a client has disconnected, and cancel the work done for it.

A synchronous server learns of a disconnect only when it writes, and it writes nothing while a model
loads or thinks. So one thread per process watches the client socket of every request in flight with
epoll. On a disconnect it shuts the upstream connection down: the blocked read in the request's own
thread returns at once, and the model server stops. A stream that has handed on a chunk continues
for a grace period, in which the model server's own counts may come. The same thread enforces the
deadlines, because a read time-out limits each silence, not the whole response.

Invariants:
- An upstream socket is shut down only while its Cancellation holds it: from the connect, before
  anything is sent, until `detach`.
- A client's file descriptor is looked up only while it is open and belongs to that client: see
  `DisconnectMonitor._by_fd`.
- Cancellation and DisconnectMonitor each have a lock. They are never nested and never held during
  I/O, so `detach` cannot block for long.
"""

import contextlib
import logging
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator

from django.conf import settings

from gateway.errors import ClientDisconnected, GatewayBusy, GatewayError, GatewayStopping

logger = logging.getLogger(__name__)

# How late a passed deadline may be noticed, in seconds. Disconnects are noticed at once.
TICK = 0.25


class Cancellation:
    """One request in flight: its key, its client's connection, its deadlines. `reason`: why it was
    cancelled, or None.

    It does nothing by itself. Unless it is added to the disconnect_monitor, it notices neither a
    disconnect nor a deadline; only the socket's time-out limits its reads.
    """

    def __init__(self, client: socket.socket | None, key_id: int | None = None) -> None:
        self.client_fd = -1 if client is None else client.fileno()
        self.key_id = key_id
        # The deadline, and the reason to cancel then. One value, so that the disconnect_monitor
        # never sees one deadline with the other's reason.
        self.limit: tuple[float, type[GatewayError]] = (float("inf"), GatewayError)
        # A second one, which `set_deadline` does not replace.
        self.kept_limit = self.limit
        self.reason: type[GatewayError] | None = None
        # For how many seconds the response continues after a disconnect. Set once a chunk was
        # handed on: the model server's counts may come soon.
        self.grace = 0.0
        self.client_left = False
        # Whether a connection was made, on which the request may have been sent.
        self.reached_upstream = False
        self._upstream: socket.socket | None = None
        self._awaited: threading.Event | None = None
        self._lock = threading.Lock()

    def set_deadline(self, seconds: float, reason: type[GatewayError]) -> None:
        """Cancel the response so many seconds from now. It replaces the former deadline."""
        self.limit = (time.monotonic() + seconds, reason)

    def keep_deadline(self) -> None:
        """Keep the present deadline for the whole response, whatever is set for a later call."""
        self.kept_limit = self.limit

    def attach(self, upstream: socket.socket) -> None:
        """Hold the upstream connection; shut it down at once if this is cancelled already."""
        with self._lock:
            self._upstream = upstream
            self.reached_upstream = True
            if self.reason:
                self._shut_down()

    @contextlib.contextmanager
    def notifies(self, event: threading.Event) -> Iterator[None]:
        """Set an event on cancellation, for a thread that waits for something else than the
        upstream connection."""
        with self._lock:
            self._awaited = event
            if self.reason:
                event.set()
        try:
            yield
        finally:
            with self._lock:
                self._awaited = None

    def set_read_timeout(self, seconds: float) -> None:
        """Set the read timeout of the upstream connection, in seconds."""
        with self._lock, contextlib.suppress(OSError):
            if self._upstream is not None:
                self._upstream.settimeout(seconds)

    def cancel(self, reason: type[GatewayError]) -> None:
        """End the response, now or as soon as it begins. The first of several reasons counts."""
        with self._lock:
            self.reason = self.reason or reason
            self._shut_down()
            if self._awaited is not None:
                self._awaited.set()

    def client_disconnected(self) -> None:
        """Note that the client has disconnected: cancel now, or after the grace."""
        if not self.grace:
            self.cancel(ClientDisconnected)
            return
        with self._lock:
            if self.client_left:
                return
            self.client_left = True
            deadline = time.monotonic() + self.grace
            if deadline < self.limit[0]:
                self.limit = (deadline, ClientDisconnected)

    def __enter__(self) -> "Cancellation":
        return self

    def __exit__(self, *_exc_info: object) -> None:
        self.detach()

    def detach(self) -> None:
        """Release both connections; may be called again. Call it before the server closes the
        client's."""
        disconnect_monitor.remove(self)
        with self._lock:
            self._upstream = None

    def _shut_down(self) -> None:
        """With the lock held: end a blocked read or write. On a closed socket it does nothing: that
        has no file descriptor any more which could belong to another connection."""
        with contextlib.suppress(OSError):
            if self._upstream is not None:
                # Not SSLSocket.shutdown, which takes the TLS state away from under the reader.
                socket.socket.shutdown(self._upstream, socket.SHUT_RDWR)


class DisconnectMonitor:
    """The thread that watches every Cancellation of this process. Without epoll (outside Linux) it
    enforces deadlines only, and a disconnect is noticed at the next write."""

    def __init__(self) -> None:
        # Every Cancellation in flight, by its id. It is watched until `remove`.
        self._watches: dict[int, Cancellation] = {}
        # Those whose client is connected. A descriptor here is open and belongs to its
        # Cancellation: the request's thread adds it, and removes it in `detach` before the server
        # may close it. Only an event that was read before that may concern a former owner.
        self._by_fd: dict[int, Cancellation] = {}
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._epoll = select.epoll() if hasattr(select, "epoll") else None
        self._is_ending: Callable[[], bool] = lambda: False
        self._drained_at = float("inf")
        # When the next of those that go on for a client that has left is to be broken off.
        self._next_deadline = float("inf")

    def drain_when(self, is_ending: Callable[[], bool]) -> None:
        """Cancel running responses DRAIN_SECONDS after `is_ending` first returns True."""
        self._is_ending = is_ending

    def add(self, cancellation: Cancellation) -> None:
        """Watch a Cancellation until `remove`. Raise GatewayBusy if no thread can be started; then
        nothing is registered.
        """
        with self._lock:
            self._start()
            if cancellation.client_fd >= 0 and self._epoll is not None:
                self._epoll.register(cancellation.client_fd, select.EPOLLRDHUP)
                self._by_fd[cancellation.client_fd] = cancellation
            self._watches[id(cancellation)] = cancellation

    def _start(self) -> None:
        """With the lock held: start the thread, for the first Cancellation of the process."""
        if self._thread is not None:
            return
        thread = threading.Thread(target=self._run, name="disconnects", daemon=True)
        try:
            thread.start()
        except RuntimeError as error:
            logger.error("A response is refused: %s", error)
            raise GatewayBusy() from error
        # Only now: if the thread did not start, the next request tries again.
        self._thread = thread

    def remove(self, cancellation: Cancellation) -> None:
        """Stop watching a Cancellation, if it was watched."""
        with self._lock:
            if self._watches.pop(id(cancellation), None) is not None:
                self._forget(cancellation.client_fd)

    def _forget(self, fd: int) -> None:
        """With the lock held: stop watching a client, if it was watched."""
        if self._by_fd.pop(fd, None) is not None and self._epoll is not None:
            with contextlib.suppress(OSError):
                self._epoll.unregister(fd)

    def _run(self) -> None:
        while True:
            try:
                self._look()
            except Exception:
                # Without this thread no disconnect would be noticed any more.
                logger.exception("The disconnect_monitor failed; it continues")

    def _look(self) -> None:
        for cancellation in self._disconnected():
            cancellation.client_disconnected()
        now = time.monotonic()
        self._next_deadline = float("inf")
        for cancellation in self.running():
            for deadline, reason in (cancellation.limit, cancellation.kept_limit):
                if now > deadline:
                    cancellation.cancel(reason)
                elif cancellation.client_left:
                    self._next_deadline = min(self._next_deadline, deadline)
            if now > self._drained_at:
                cancellation.cancel(GatewayStopping)
        if self._drained_at == float("inf") and self._is_ending():
            self._drained_at = now + settings.DRAIN_SECONDS

    def _disconnected(self) -> list[Cancellation]:
        """Wait for disconnects, at most a TICK or up to the end of a grace; return each once."""
        timeout = min(TICK, max(0.001, self._next_deadline - time.monotonic()))
        if self._epoll is None:
            time.sleep(timeout)
            return []
        events = self._epoll.poll(timeout)
        with self._lock:
            # Checked again under the lock: the event may concern a former owner of the descriptor.
            # epoll reports a disconnect until `_forget`, so none is missed.
            gone = [fd for fd, _event in events if fd in self._by_fd and has_disconnected(fd)]
            left = [self._by_fd[fd] for fd in gone]
            for fd in gone:
                self._forget(fd)
        return left

    def running(self) -> list[Cancellation]:
        """Return the requests in flight that were not cancelled."""
        with self._lock:
            return [
                cancellation
                for cancellation in self._watches.values()
                if cancellation.reason is None
            ]


disconnect_monitor = DisconnectMonitor()


def track_client(client: socket.socket | None, key_id: int | None = None) -> Cancellation:
    """Return a Cancellation that is watched until `detach`: its client, if there is one, and its
    deadlines.

    A client that disconnected while its request waited for a thread is noticed here, so the model
    server is not asked.
    """
    cancellation = Cancellation(client, key_id)
    if has_disconnected(cancellation.client_fd):
        cancellation.cancel(ClientDisconnected)
    disconnect_monitor.add(cancellation)
    return cancellation


def has_disconnected(fd: int) -> bool:
    """Tell whether a client has disconnected, without waiting."""
    if fd < 0 or not hasattr(select, "POLLRDHUP"):
        return False
    poll = select.poll()
    poll.register(fd, select.POLLRDHUP)
    return bool(poll.poll(0))
