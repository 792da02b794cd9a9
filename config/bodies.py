"""One deadline for the head of a request and its body together, for gunicorn's readers of bodies.

It leans on `Body.reader` of gunicorn 27, and on the `length` and `parser` of its two readers.
"""

import threading
import time
from typing import Any

from config import environment

# Seconds that a client may take for the head of its request, to send the next byte of its body, or
# to take the next of its answer. Accepted connections inherit the last two from the listening one.
CLIENT_SECONDS = environment.read_server(environment.read()).client_seconds

# How much of a body must arrive in CLIENT_SECONDS: with 30 of them, 64 KiB a second.
BYTES_IN_TIME = 30 * 64 * 1024
# What a body in chunks may hold, as far as its deadline goes: nobody knows its size.
CHUNKED_BYTES = 4 * 1024 * 1024

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"

# By thread: until when what it reads must be there, and the connection.
Reading = dict[int, tuple[float, Any]]


class TimedReader:
    """Stands in for gunicorn's reader of a body: late is late, however steadily it trickles.

    A time-out of the socket bounds silence only. While a thread reads it stands in `reading`, and
    the main thread ends the reading when its time is up.
    """

    def __init__(self, request: Any, reading: Reading, conn: Any, began: float) -> None:
        self._reader = request.body.reader
        self._reading, self._conn = reading, conn
        size = getattr(self._reader, "length", CHUNKED_BYTES)
        self._until = began + CLIENT_SECONDS * (2 + size / BYTES_IN_TIME)
        # Said when somebody wants the body: not to whom a 401 is said.
        self._owes_continue = request._expected_100_continue
        request._expected_100_continue = False

    @property
    def is_whole(self) -> bool:
        """Tell whether nothing of the body is left to be read."""
        if hasattr(self._reader, "length"):
            return bool(self._reader.length == 0)
        return not self._reader.parser and not self._reader.buf.tell()

    def read(self, size: int) -> Any:
        if self.is_whole:
            return b""  # Asked also before the next request, which has a deadline of its own.
        if self._owes_continue:
            self._owes_continue = False
            self._conn.sock.send(CONTINUE)
        thread = threading.get_ident()
        self._reading[thread] = (self._until, self._conn)
        try:
            found = self._reader.read(size)
        except Exception as error:
            self._raise_if_late(error)
            raise
        finally:
            del self._reading[thread]
        self._raise_if_late(None)
        return found

    def _raise_if_late(self, cause: Exception | None) -> None:
        if time.monotonic() > self._until:
            raise TimeoutError("The body is late.") from cause


def time_body(request: Any, reading: Reading, conn: Any, began: float) -> None:
    """Give a request's body its deadline; and have its connection closed by an answer that comes
    before the body was read, instead of waiting for the rest."""
    body, asked_to_close = request.body, request.should_close
    body.reader = TimedReader(request, reading, conn, began)
    request.should_close = lambda: asked_to_close() or not body.reader.is_whole
