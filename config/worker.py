"""gunicorn's threaded worker, with less patience for clients that cost a thread and give nothing.

It leans on names of gunicorn 27 that are not documented: `_DEFER`, and the methods of ThreadWorker
overridden here. Look here first when gunicorn is upgraded. `tests/flow/test_server.py` and
`tests/faults/test_slow_clients.py` are its proof.
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

# How long a client may take to close after its answer, before it may miss the end of it.
LINGER_SECONDS = 1.0
# How much it may still send meanwhile: who is told no in the middle of a body should read it.
LINGER_BYTES = 16 * 1024 * 1024
# How long a worker that is out of files waits for an answer to end and give some back.
PAUSE_SECONDS = 0.1
# How long a request may wait for a thread, or a connection for another worker to accept it.
FULL_SECONDS = 0.05
# How often that is looked at: another worker empties the backlog faster.
LOOK_SECONDS = 0.01
# The most connections that are refused at once, before answers are looked after again.
REFUSED_AT_ONCE = 64
HEAD_BYTES = 8192


class Worker(ThreadWorker):  # type: ignore[misc]  # gunicorn has no types
    """gunicorn's gthread, with less patience: a thread is what is sold, so none is had for nothing.

    - A connection on which nothing was said yet waits in the poller. Stock lends it a thread for
      five seconds, so that a few hundred idle connections keep every other client waiting.
    - The head of a request must be whole in CLIENT_SECONDS, and its body in a time that grows with
      its size, however they trickle in. A time-out of the socket bounds silence only.
    - A body that nobody reads is not drained: the answer closes the connection.
    - The poller waits for a client to close after its answer. Stock waits in its main thread, up
      to two seconds for each client: fifteen that do not close, and the worker counts as dead and
      is killed with every answer in it.
    - A worker without a free thread accepts nobody, so that another one does; where none does, it
      answers 503. Stock accepts on, and its connections wait while another worker idles.
    - A worker that is out of files accepts nobody for a moment. Stock ends, with all its answers.

    Only the main thread touches what is counted here.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._reading: Reading = {}
        self._busy = 0
        self._refused = 0
        # Kept connections with a request and no thread for it, since when.
        self._queue: deque[tuple[float, Any]] = deque()
        # Since when connections wait in the backlog of a full worker.
        self._backlog_since: float | None = None
        # Answered connections whose client has not closed yet: until when, and how much more.
        self._leaving: dict[socket.socket, list[float]] = {}

    # --- Beginning --------------------------------------------------------------------------------

    def set_accept_enabled(self, enabled: bool) -> None:
        super().set_accept_enabled(enabled and self._backlog_since is None)

    def accept(self, listener: Any) -> None:
        """Accept a connection; without a file for it let it wait, instead of ending the worker."""
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
        """Lend a connection a thread for its next request, if it has begun one."""
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
                # Its thread reads the end of the connection, and is free.
                with contextlib.suppress(OSError):
                    conn.sock.shutdown(socket.SHUT_RD)
        if self._refused:
            self.log.warning("All threads are busy: %s connections were told so.", self._refused)
            self._refused = 0

    # --- Ending -----------------------------------------------------------------------------------

    def finish_request(self, conn: Any, fs: Any) -> None:
        """Called in the main thread when a thread is done with a connection."""
        self._busy -= 1
        if fs.cancelled() or fs.exception() or not fs.result():
            self._leave(conn.sock)
        else:
            super().finish_request(conn, fs)

    def _leave(self, sock: socket.socket) -> None:
        """Close a connection once its client has; at once, the client might miss its answer."""
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
            self._let_go(sock)

    def _let_go(self, sock: socket.socket) -> None:
        del self._leaving[sock]
        self.poller.unregister(sock)
        self._close(sock)

    def _close(self, sock: socket.socket) -> None:
        self.nr_conns -= 1
        util.close(sock)

    # --- Full -------------------------------------------------------------------------------------

    def wait_for_and_dispatch_events(self, timeout: float) -> None:
        if self._queue or self._backlog_since is not None:
            timeout = min(timeout, LOOK_SECONDS)
        elif self._leaving:
            timeout = min(timeout, LINGER_SECONDS / 4)
        super().wait_for_and_dispatch_events(timeout)
        now = time.monotonic()
        self._look_at_queue(now)
        self._look_at_backlog(now)
        while self._leaving and next(iter(self._leaving.values()))[0] < now:
            self._let_go(next(iter(self._leaving)))

    def _look_at_queue(self, now: float) -> None:
        while self._queue and not self._is_full():
            self.enqueue_req(self._queue.popleft()[1])
        while self._queue and now - self._queue[0][0] > FULL_SECONDS:
            self._refuse(self._queue.popleft()[1].sock)

    def _look_at_backlog(self, now: float) -> None:
        """Accept again when a thread is free; refuse what no worker accepted for so long.

        What waits there now need not be what waited before. But a worker with a free thread empties
        the backlog, and then this one sees it empty.
        """
        if self._backlog_since is None:
            return
        if self.alive and self._is_full() and self._backlog():
            if now - self._backlog_since < FULL_SECONDS:
                return
            self._refuse_backlog()
        self._backlog_since = None

    def _backlog(self) -> bool:
        poll = select.poll()
        for listener in self.sockets:
            poll.register(listener, select.POLLIN)
        return bool(poll.poll(0))

    def _refuse_backlog(self) -> None:
        for listener in self.sockets:
            with contextlib.suppress(OSError):  # Nobody waits there any more.
                for _ in range(REFUSED_AT_ONCE):
                    sock, _address = listener.accept()
                    self.nr_conns += 1
                    self._refuse(sock)

    def _refuse(self, sock: socket.socket) -> None:
        """Answer 503 without a thread, in the shape of the family whose address was asked for."""
        from gateway.wire import answer_when_full  # Not in the master, which a reload keeps.

        head = b""
        sock.setblocking(False)
        with contextlib.suppress(OSError):
            head = sock.recv(HEAD_BYTES)
        with contextlib.suppress(OSError):
            sock.send(answer_when_full(head))
        self._refused += 1
        self._leave(sock)


def write_error(sock: socket.socket, status: int, reason: str, _message: str) -> None:
    """Stand in for gunicorn's page: every error is JSON, and what it quotes may be a key."""
    from gateway.wire import broken_request

    util.write_nonblock(sock, broken_request(status, reason))


util.write_error = write_error
