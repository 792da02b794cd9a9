"""gunicorn's threaded worker, with less patience for clients that cost a thread and give nothing.

It leans on two names of gunicorn 27 that are not documented, `_DEFER` and the loop that calls
`handle`: look here first when gunicorn is upgraded. `tests/campaign/test_slow_clients.py` is its
proof.
"""

import contextlib
import errno
import socket
import threading
import time
from typing import Any

from gunicorn.util import close_graceful
from gunicorn.workers.gthread import _DEFER, ThreadWorker

from config import environment

# Seconds that a client may take for the head of its request, to send the next byte of its body, or
# to take the next of its answer. Accepted connections inherit the last two from the listening one.
CLIENT_SECONDS = environment.read_server(environment.read()).client_seconds

# How long a client may take to close after its answer, before it may miss the end of it.
LINGER_SECONDS = 1.0
# How long a worker that is out of files waits for an answer to end and give some back.
PAUSE_SECONDS = 0.1


class Worker(ThreadWorker):  # type: ignore[misc]  # gunicorn has no types
    """gunicorn's gthread, with less patience: a thread is what is sold, so none is had for nothing.

    - A connection on which nothing was said yet waits in the poller. Stock lends it a thread for
      five seconds, so that a few hundred idle connections keep every other client waiting.
    - The head of a request must be whole in CLIENT_SECONDS, however it trickles in. A time-out of
      the socket bounds silence only, never the whole.
    - A thread of the pool waits for a client to close after its answer. Stock waits in its main
      thread, up to two seconds for each client: fifteen that do not close, and the worker counts
      as dead and is killed with every answer in it.
    - A worker that is out of files accepts nobody for a moment. Stock ends, with all its answers.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # By thread: when the head it reads must be whole, and the connection.
        self._heads: dict[int, tuple[float, Any]] = {}

    def accept(self, listener: Any) -> None:
        """Accept a connection; without a file for it let it wait, instead of ending the worker."""
        try:
            super().accept(listener)
        except OSError as error:
            if error.errno not in (errno.EMFILE, errno.ENFILE):
                raise
            time.sleep(PAUSE_SECONDS)

    def handle(self, conn: Any) -> Any:
        """Serve a connection's next request, in a thread of the pool."""
        if not conn.initialized and not conn.wait_for_data(0):
            return _DEFER
        self._heads[threading.get_ident()] = (time.monotonic() + CLIENT_SECONDS, conn)
        try:
            stays = super().handle(conn)
        finally:
            self.head_is_whole()
        if stays is False:
            close_graceful(conn.sock, LINGER_SECONDS)
            conn.close = done_already
        return stays

    def head_is_whole(self) -> None:
        self._heads.pop(threading.get_ident(), None)

    def notify(self) -> None:
        """Called by gunicorn about once a second, in the main thread."""
        super().notify()
        now = time.monotonic()
        for deadline, conn in list(self._heads.values()):
            if now > deadline:
                # Its thread reads the end of the connection, and is free.
                with contextlib.suppress(OSError):
                    conn.sock.shutdown(socket.SHUT_RD)


def done_already(graceful: bool = False) -> None:
    """Stand in for the closing of a connection that is closed."""
