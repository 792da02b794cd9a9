"""One deadline for the headers and the body of a request, in gunicorn's body readers.

It uses `Body.reader` of gunicorn 27, and `length` and `parser` of its two readers.
"""

import threading
import time
from typing import Any

from config import environment

# Seconds a client may take for its headers, for the next byte of its body, or to read the next
# bytes of its response. Accepted connections inherit the last two from the listening socket.
CLIENT_SECONDS = environment.read_server(environment.read()).client_seconds

# How much of a body must arrive in CLIENT_SECONDS: with 30 of them, 64 KiB a second.
BYTES_IN_TIME = 30 * 64 * 1024
# The size that the deadline assumes for a body in chunks, whose size is unknown.
CHUNKED_BYTES = 4 * 1024 * 1024

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"

# The deadline of what a thread reads, and its connection, by the thread's id.
Reading = dict[int, tuple[float, Any]]


class TimedReader:
    """Replaces gunicorn's body reader, to add a deadline for the whole body.

    A socket timeout limits only the pause between two bytes. A thread that reads is listed in
    `reading`, and the main thread ends the read at its deadline.
    """

    def __init__(self, request: Any, reading: Reading, conn: Any, began: float) -> None:
        self._reader = request.body.reader
        self._reading, self._conn = reading, conn
        size = getattr(self._reader, "length", CHUNKED_BYTES)
        self._until = began + CLIENT_SECONDS * (2 + size / BYTES_IN_TIME)
        # Sent when the body is read, so that a request that gets a 401 sends no body.
        self._owes_continue = request._expected_100_continue
        request._expected_100_continue = False

    @property
    def is_whole(self) -> bool:
        """Tell whether the whole body has been read."""
        if hasattr(self._reader, "length"):
            return bool(self._reader.length == 0)
        return not self._reader.parser and not self._reader.buf.tell()

    def read(self, size: int) -> Any:
        if self.is_whole:
            return b""  # gunicorn also reads before the next request, which has its own deadline.
        if self._owes_continue:
            self._owes_continue = False
            self._conn.sock.send(CONTINUE)
        thread = threading.get_ident()
        self._reading[thread] = (self._until, self._conn)
        try:
            body = self._reader.read(size)
        except Exception as error:
            self._raise_if_late(error)
            raise
        finally:
            del self._reading[thread]
        self._raise_if_late(None)
        return body

    def _raise_if_late(self, cause: Exception | None) -> None:
        if time.monotonic() > self._until:
            raise TimeoutError("The body did not arrive in time.") from cause


def time_body(request: Any, reading: Reading, conn: Any, began: float) -> None:
    """Set the deadline of a request's body.

    If the response comes before the body is read, close the connection instead of reading the rest.
    """
    body, should_close = request.body, request.should_close
    body.reader = TimedReader(request, reading, conn, began)
    request.should_close = lambda: should_close() or not body.reader.is_whole
