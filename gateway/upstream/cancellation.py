"""Notice that a client has left, and break off the work done for it.

A synchronous server learns that its client is gone only when it writes, and while a model loads
or thinks nobody writes. So one thread per process keeps the client's socket of every request in
flight in an epoll set, and when one hangs up it shuts the upstream connection down: the blocked
read in the request's own thread returns at once, and the model server stops. A stream of which a
chunk was handed on has a moment more, its grace, for the model server's own counts. The same thread
keeps the deadlines, since a read time-out bounds silence only, never the whole.

Invariants:
- An upstream socket is shut down only while its Cancellation holds it: from when it is connected,
  before anything is sent on it, until `end`.
- A client's number is looked up only while it is open and the client's: see
  `DisconnectMonitor._by_fd`.
- A Cancellation and the DisconnectMonitor have a lock each, never taken one inside the other, and
  nobody who holds one waits for a client or a server; so `end` never waits long for the thread.
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

# How late a passed deadline may be noticed, in seconds. Hang-ups are noticed at once.
TICK = 0.25


class Cancellation:
    """One request in flight: whose it is, whether its client is still there, and until when it may
    take. `cut` says why its answer was broken off, once it was.

    It does nothing by itself. One that nobody added to the disconnect_monitor notices neither a
    client nor a deadline; only the socket's time-out bounds its reads.
    """

    def __init__(self, client: socket.socket | None, key_id: int | None = None) -> None:
        self.client_fd = -1 if client is None else client.fileno()
        self.key_id = key_id
        # Until when the answer may take, and why it is broken off then. One value, so that the
        # disconnect_monitor never sees one deadline with the other's reason.
        self.limit: tuple[float, type[GatewayError]] = (float("inf"), GatewayError)
        # Another, which no call of `set_deadline` moves.
        self.kept_limit = self.limit
        self.reason: type[GatewayError] | None = None
        # For how many seconds the answer may go on after the client has left. Set once a chunk was
        # handed on: the counts of the whole may be near.
        self.grace = 0.0
        self.client_left = False
        # Whether a connection was made for it, on which its request may have been sent.
        self.reached_upstream = False
        self._upstream: socket.socket | None = None
        self._awaited: threading.Event | None = None
        self._lock = threading.Lock()

    def set_deadline(self, seconds: float, reason: type[GatewayError]) -> None:
        """Have the disconnect_monitor break the answer off so many seconds from now, in place of
        what was set before."""
        self.limit = (time.monotonic() + seconds, reason)

    def keep_deadline(self) -> None:
        """Keep the deadline that is set now for the whole, whatever is set for the next call."""
        self.kept_limit = self.limit

    def attach(self, upstream: socket.socket) -> None:
        """Hold the upstream connection, and break it off at once if it is too late already."""
        with self._lock:
            self._upstream = upstream
            self.reached_upstream = True
            if self.reason:
                self._shut_down()

    @contextlib.contextmanager
    def notifies(self, event: threading.Event) -> Iterator[None]:
        """Set an event when the answer is broken off, for whoever waits for something else than
        the upstream connection."""
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
        """Let a read of the upstream connection wait so long for its next bytes, and no longer."""
        with self._lock, contextlib.suppress(OSError):
            if self._upstream is not None:
                self._upstream.settimeout(seconds)

    def cancel(self, reason: type[GatewayError]) -> None:
        """End the answer, now or as soon as it begins. Of several reasons the first stands."""
        with self._lock:
            self.reason = self.reason or reason
            self._shut_down()
            if self._awaited is not None:
                self._awaited.set()

    def client_disconnected(self) -> None:
        """Note that the client has left: break the answer off, now or after the grace."""
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
        """With the lock held: free whoever reads or writes. On a socket that was closed meanwhile
        it does nothing: a closed one has no number any more that could be another's."""
        with contextlib.suppress(OSError):
            if self._upstream is not None:
                # Not SSLSocket.shutdown, which takes the TLS state away from under the reader.
                socket.socket.shutdown(self._upstream, socket.SHUT_RDWR)


class DisconnectMonitor:
    """The thread that looks after every Cancellation of this process. Without epoll (outside Linux)
    it keeps deadlines only, and a leaving client is noticed at the next write."""

    def __init__(self) -> None:
        # Every Cancellation in flight, by its id: it is looked after until `remove`.
        self._watches: dict[int, Cancellation] = {}
        # Those whose client has not hung up. A number here is open and belongs to its Cancellation:
        # the request's thread enters it, and removes it in `end` before the server may close it.
        # Only an event that was read earlier may be about a former owner.
        self._by_fd: dict[int, Cancellation] = {}
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._epoll = select.epoll() if hasattr(select, "epoll") else None
        self._is_ending: Callable[[], bool] = lambda: False
        self._drained_at = float("inf")
        # When the next of those that go on for a client that has left is to be broken off.
        self._next_deadline = float("inf")

    def drain_when(self, is_ending: Callable[[], bool]) -> None:
        """Break running answers off in good order, DRAIN_SECONDS after the server says it ends."""
        self._is_ending = is_ending

    def add(self, cancellation: Cancellation) -> None:
        """Look after a Cancellation until `remove`; one that cannot be looked after leaves no
        trace.

        Raises GatewayBusy where no thread is to be had.
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
            logger.error("An answer is refused: %s", error)
            raise GatewayBusy() from error
        # Only now: one that did not start is tried again for the next request.
        self._thread = thread

    def remove(self, cancellation: Cancellation) -> None:
        """Look after a Cancellation no more, if anybody did."""
        with self._lock:
            if self._watches.pop(id(cancellation), None) is not None:
                self._forget(cancellation.client_fd)

    def _forget(self, fd: int) -> None:
        """With the lock held: listen to a client no more; nothing, if nobody does."""
        if self._by_fd.pop(fd, None) is not None and self._epoll is not None:
            with contextlib.suppress(OSError):
                self._epoll.unregister(fd)

    def _run(self) -> None:
        while True:
            try:
                self._look()
            except Exception:
                # Without this thread nobody would be noticed any more; so it outlives every fault.
                logger.exception("The disconnect_monitor failed; it goes on")

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
        """Wait for clients to hang up, for a TICK at most and to the end of a grace; return each
        once."""
        timeout = min(TICK, max(0.001, self._next_deadline - time.monotonic()))
        if self._epoll is None:
            time.sleep(timeout)
            return []
        events = self._epoll.poll(timeout)
        with self._lock:
            # Asked again under the lock: the event may be about a former owner of the number. Who
            # has hung up is reported until it is forgotten, so nobody is missed.
            gone = [fd for fd, _event in events if fd in self._by_fd and has_disconnected(fd)]
            left = [self._by_fd[fd] for fd in gone]
            for fd in gone:
                self._forget(fd)
        return left

    def running(self) -> list[Cancellation]:
        """Return the requests in flight whose answers were not broken off."""
        with self._lock:
            return [
                cancellation
                for cancellation in self._watches.values()
                if cancellation.reason is None
            ]


disconnect_monitor = DisconnectMonitor()


def track_client(client: socket.socket | None, key_id: int | None = None) -> Cancellation:
    """Return a Cancellation, looked after until its `end`, over a request's client and its
    deadlines; over its deadlines alone without a client.

    A client that left while its request waited for a thread is known to have left at once, so that
    the model server is never asked.
    """
    found = Cancellation(client, key_id)
    if has_disconnected(found.client_fd):
        found.cancel(ClientDisconnected)
    disconnect_monitor.add(found)
    return found


def has_disconnected(fd: int) -> bool:
    """Tell whether a client is gone; asks the kernel and does not wait."""
    if fd < 0 or not hasattr(select, "POLLRDHUP"):
        return False
    poll = select.poll()
    poll.register(fd, select.POLLRDHUP)
    return bool(poll.poll(0))
