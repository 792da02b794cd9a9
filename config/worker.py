"""gunicorn's threaded worker, in which slow or idle clients do not occupy threads.

It uses names of gunicorn 27 that are not documented: `_DEFER`, and the methods of ThreadWorker that
it overrides. Check them when gunicorn is upgraded. `tests/flow/test_server.py` and
`tests/faults/test_slow_clients.py` test it.
"""

import contextlib
import errno
import select
import selectors
import socket
import threading
import time
from collections import deque
from concurrent.futures import Future
from functools import partial
from typing import Any

from gunicorn import util
from gunicorn.workers.gthread import _DEFER, ThreadWorker

from config.bodies import CLIENT_SECONDS, Reading, time_body

# How long the worker waits for a client to close after its response. A connection that is closed
# earlier may lose the end of the response.
LINGER_SECONDS = 1.0
# How much the client may still send meanwhile, so that it can read an error that interrupts a body.
LINGER_BYTES = 16 * 1024 * 1024
# How long a worker without free file descriptors waits for a response to end.
PAUSE_SECONDS = 0.1
# How long a request may wait for a thread, or a connection for another worker to accept it.
FULL_SECONDS = 0.05
# How often the worker checks this. Another worker empties the backlog faster.
CHECK_SECONDS = 0.01
# The most connections that are rejected at once, before other events are handled.
REJECTED_AT_ONCE = 64
HEAD_BYTES = 8192


class Worker(ThreadWorker):  # type: ignore[misc]  # gunicorn has no types
    """Threads are the capacity that is sold, so an idle client must not occupy one.

    The differences from gunicorn's gthread:

    - A connection without data waits in the poller. gthread gives it a thread for five seconds, so
      a few hundred idle connections make every other client wait.
    - The headers of a request must arrive within CLIENT_SECONDS, and its body within a time that
      grows with its size. A socket timeout limits only the pause between two bytes.
    - An unread body is not drained: the response closes the connection.
    - The poller waits for a client to close after its response. gthread waits in its main thread,
      up to two seconds for each client. After fifteen clients that do not close, the master would
      kill the worker with all its responses.
    - A worker without a free thread accepts no connection, so that another worker does. If none
      does, it responds with 503. gthread accepts connections, which wait while others are idle.
    - A worker without free file descriptors accepts no connection for a moment. gthread exits, with
      all its responses.

    Only the main thread changes the counters.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._reading: Reading = {}
        self._busy = 0
        self._rejected = 0
        # Kept-alive connections with a request that waits for a thread, and since when.
        self._queue: deque[tuple[float, Any]] = deque()
        # Since when connections wait in the backlog of a full worker.
        self._backlog_since: float | None = None
        # Connections whose client has not closed after its response: deadline and bytes left.
        self._leaving: dict[socket.socket, list[float]] = {}

    # --- Accepting --------------------------------------------------------------------------------

    def set_accept_enabled(self, enabled: bool) -> None:
        super().set_accept_enabled(enabled and self._backlog_since is None)

    def accept(self, listener: Any) -> None:
        """Accept a connection. Without a free file descriptor let it wait; gthread would exit."""
        if self._is_full():
            self._backlog_since = time.monotonic()
            self.set_accept_enabled(False)
            return
        try:
            super().accept(listener)
        except OSError as error:
            if error.errno not in (errno.EMFILE, errno.ENFILE):
                raise
            time.sleep(PAUSE_SECONDS)

    def _is_full(self) -> bool:
        return bool(self._busy >= self.cfg.threads)

    def enqueue_req(self, conn: Any) -> None:
        """Give a connection a thread for its next request, if data of it has arrived."""
        if not conn.initialized and not conn.wait_for_data(0):
            silent: Future[Any] = Future()
            silent.set_result(_DEFER)
            super().finish_request(conn, silent)
        elif self._is_full():
            self._queue.append((time.monotonic(), conn))
        else:
            self._busy += 1
            super().enqueue_req(conn)

    def handle(self, conn: Any) -> Any:
        """Serve a connection's next request, in a thread of the pool."""
        self._reading[threading.get_ident()] = (time.monotonic() + CLIENT_SECONDS, conn)
        try:
            return super().handle(conn)
        finally:
            self._reading.pop(threading.get_ident(), None)

    def head_is_whole(self, request: Any) -> None:
        until, conn = self._reading.pop(threading.get_ident())
        time_body(request, self._reading, conn, until - CLIENT_SECONDS)

    def notify(self) -> None:
        """Called by gunicorn about once a second, in the main thread."""
        super().notify()
        now = time.monotonic()
        for deadline, conn in list(self._reading.values()):
            if now > deadline:
                # Its thread reads the end of the connection, and becomes free.
                with contextlib.suppress(OSError):
                    conn.sock.shutdown(socket.SHUT_RD)
        if self._rejected:
            self.log.warning("All threads are busy: %s connections got 503.", self._rejected)
            self._rejected = 0

    # --- Closing ----------------------------------------------------------------------------------

    def finish_request(self, conn: Any, fs: Any) -> None:
        """Called in the main thread when a thread is done with a connection."""
        self._busy -= 1
        if fs.cancelled() or fs.exception() or not fs.result():
            self._leave(conn.sock)
        else:
            super().finish_request(conn, fs)

    def _leave(self, sock: socket.socket) -> None:
        """Close a connection after its client does. Earlier, the client might lose the response."""
        try:
            sock.shutdown(socket.SHUT_WR)
            sock.setblocking(False)
            self.poller.register(sock, selectors.EVENT_READ, partial(self._drain, sock))
        except (OSError, ValueError):
            self._close(sock)
        else:
            self._leaving[sock] = [time.monotonic() + LINGER_SECONDS, LINGER_BYTES]

    def _drain(self, sock: socket.socket, _: Any = None) -> None:
        try:
            count = len(sock.recv(65_536))
        except BlockingIOError:
            return
        except OSError:
            count = 0
        self._leaving[sock][1] -= count
        if not count or self._leaving[sock][1] < 0:
            self._close_left(sock)

    def _close_left(self, sock: socket.socket) -> None:
        del self._leaving[sock]
        self.poller.unregister(sock)
        self._close(sock)

    def _close(self, sock: socket.socket) -> None:
        self.nr_conns -= 1
        util.close(sock)

    # --- Full -------------------------------------------------------------------------------------

    def wait_for_and_dispatch_events(self, timeout: float) -> None:
        if self._queue or self._backlog_since is not None:
            timeout = min(timeout, CHECK_SECONDS)
        elif self._leaving:
            timeout = min(timeout, LINGER_SECONDS / 4)
        super().wait_for_and_dispatch_events(timeout)
        now = time.monotonic()
        self._check_queue(now)
        self._check_backlog(now)
        while self._leaving and next(iter(self._leaving.values()))[0] < now:
            self._close_left(next(iter(self._leaving)))

    def _check_queue(self, now: float) -> None:
        while self._queue and not self._is_full():
            self.enqueue_req(self._queue.popleft()[1])
        while self._queue and now - self._queue[0][0] > FULL_SECONDS:
            self._reject(self._queue.popleft()[1].sock)

    def _check_backlog(self, now: float) -> None:
        """Accept again when a thread is free; reject connections that no worker accepts.

        The connections that wait now may be others than before. But a worker with a free thread
        empties the backlog, and then this worker sees it empty.
        """
        if self._backlog_since is None:
            return
        if self.alive and self._is_full() and self._backlog():
            if now - self._backlog_since < FULL_SECONDS:
                return
            self._reject_backlog()
        self._backlog_since = None

    def _backlog(self) -> bool:
        poll = select.poll()
        for listener in self.sockets:
            poll.register(listener, select.POLLIN)
        return bool(poll.poll(0))

    def _reject_backlog(self) -> None:
        for listener in self.sockets:
            with contextlib.suppress(OSError):  # The backlog is empty.
                for _ in range(REJECTED_AT_ONCE):
                    sock, _address = listener.accept()
                    self.nr_conns += 1
                    self._reject(sock)

    def _reject(self, sock: socket.socket) -> None:
        """Respond with 503 without a thread, in the format of the requested route's API."""
        from gateway.wire import (
            answer_when_full,
        )  # Not imported by the master, which lives through a reload.

        head = b""
        sock.setblocking(False)
        with contextlib.suppress(OSError):
            head = sock.recv(HEAD_BYTES)
        with contextlib.suppress(OSError):
            sock.send(answer_when_full(head))
        self._rejected += 1
        self._leave(sock)


def write_error(sock: socket.socket, status: int, reason: str, _message: str) -> None:
    """Replace gunicorn's page: every error is JSON, and gunicorn's text may quote a key."""
    from gateway.wire import broken_request

    util.write_nonblock(sock, broken_request(status, reason))


util.write_error = write_error
