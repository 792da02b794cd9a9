"""An HTTP client on a raw socket, for requests that client libraries cannot send."""

import json
import socket
import struct
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self
from urllib.parse import urlsplit

# Closing a socket with this on sends RST instead of FIN.
LINGER_ZERO = struct.pack("ii", 1, 0)


class Truncated(EOFError):
    """The connection ended before the response. `partial` has the unread bytes."""

    def __init__(self, partial: bytes) -> None:
        super().__init__(f"the answer broke off after {partial[-80:]!r}")
        self.partial = partial


# What reading an interrupted response raises.
BROKEN = (Truncated, ConnectionError)


@dataclass(frozen=True)
class Head:
    """Status and headers, names in lower case; a repeated header is joined by commas."""

    status: int
    headers: dict[str, str]


class RawClient:
    """One connection: send, then read as slowly as you like. Nothing is ever retried.

    `timeout` bounds every call as a whole; `receive_buffer` makes a reader that fills up early.
    """

    def __init__(self, url: str, timeout: float = 10.0, receive_buffer: int | None = None) -> None:
        parts = urlsplit(url)
        self.host = f"{parts.hostname}:{parts.port or 80}"
        self.timeout = timeout
        self.sock = socket.socket()
        self.sock.settimeout(timeout)
        if receive_buffer:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        try:
            self.sock.connect((parts.hostname, parts.port or 80))
        except OSError:
            self.sock.close()
            raise
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.head: Head | None = None
        self._wire = b""
        self._body = b""
        self._bodiless = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    # --- Sending ----------------------------------------------------------------------------

    def send(self, data: bytes) -> None:
        self.sock.settimeout(self.timeout)
        self.sock.sendall(data)

    def request(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | bytes = b"",
        key: str | None = None,
        headers: Mapping[str, str | None] | None = None,
    ) -> None:
        """Send a request and return at once; a header that is None is left out."""
        self.head = None
        self._bodiless = method == "HEAD"
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        named: dict[str, str | None] = {"Host": self.host, "Content-Length": str(len(data))}
        named |= {"Content-Type": "application/json"} if data else {}
        named |= {"Authorization": f"Bearer {key}"} if key else {}
        named |= headers or {}
        lines = [f"{method} {path} HTTP/1.1"]
        lines += [f"{name}: {value}" for name, value in named.items() if value is not None]
        self.send("\r\n".join([*lines, "", ""]).encode("latin-1") + data)

    def post(
        self,
        path: str,
        body: Mapping[str, Any] | bytes,
        key: str | None = None,
        headers: Mapping[str, str | None] | None = None,
    ) -> None:
        self.request("POST", path, body, key, headers)

    def get(
        self, path: str, key: str | None = None, headers: Mapping[str, str | None] | None = None
    ) -> None:
        self.request("GET", path, b"", key, headers)

    # --- Reading ----------------------------------------------------------------------------

    def read_head(self) -> Head:
        """Status and headers of the answer; a 1xx counts as one."""
        deadline = time.monotonic() + self.timeout
        first, *lines = self._until(b"\r\n\r\n", deadline).decode("latin-1").split("\r\n")
        headers: dict[str, str] = {}
        for line in lines:
            name, _, value = line.partition(":")
            name = name.lower()
            headers[name] = ", ".join(filter(None, [headers.get(name), value.strip()]))
        self.head = Head(int(first.split()[1]), headers)
        self._begin_body(self.head)
        return self.head

    def read_line(self) -> bytes | None:
        """The next line of the body without its end; None when the answer has properly ended."""
        self._expect_head()
        deadline = time.monotonic() + self.timeout
        while b"\n" not in self._body and not self._ended:
            self._decode(deadline)
        if not self._body:
            return None
        line, _, self._body = self._body.partition(b"\n")
        return line

    def read_json(self) -> Any:
        """The next line of the body as JSON; None at the end."""
        line = self.read_line()
        return None if line is None else json.loads(line)

    def read_all(self) -> bytes:
        """The rest of the body; raises `Truncated` when the answer has no proper end."""
        self._expect_head()
        deadline = time.monotonic() + self.timeout
        while not self._ended:
            self._decode(deadline)
        body, self._body = self._body, b""
        return body

    def is_closed(self) -> bool:
        """Whether the server closes the connection, sending nothing more, within the time-out."""
        try:
            return not self._wire and not self._receive(time.monotonic() + self.timeout)
        except ConnectionError:
            return True
        except TimeoutError:
            return False

    # --- Disconnecting ----------------------------------------------------------------------

    def close(self) -> None:
        self.sock.close()

    def reset(self) -> None:
        """Close with RST instead of FIN."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_ZERO)
        self.sock.close()

    # --- Framing ----------------------------------------------------------------------------

    def _begin_body(self, head: Head) -> None:
        self._body = b""
        self._chunked = head.headers.get("transfer-encoding", "").lower() == "chunked"
        length = head.headers.get("content-length")
        self._missing = int(length) if length and not self._chunked else None
        nothing = self._bodiless or head.status in (204, 304) or head.status < 200
        self._ended = nothing or self._missing == 0

    def _expect_head(self) -> None:
        if self.head is None or self.head.status < 200:
            self.read_head()

    def _decode(self, deadline: float) -> None:
        """Read the next part of the body from the socket into `_body`."""
        if self._chunked:
            self._decode_chunk(deadline)
        elif self._missing is None:
            self._take_all(deadline)
        else:
            piece = self._wire or self._receive(deadline)
            if not piece:
                raise Truncated(self._body)
            self._body += piece[: self._missing]
            self._wire = piece[self._missing :]
            self._missing = max(0, self._missing - len(piece))
            self._ended = not self._missing

    def _decode_chunk(self, deadline: float) -> None:
        while b"\r\n" not in self._wire:
            self._more(deadline)
        head, _, _ = self._wire.partition(b"\r\n")
        size = int(head.split(b";")[0], 16)
        start, end = len(head) + 2, len(head) + 2 + size
        # Read completely or not at all, so that the reader can continue after a timeout.
        while len(self._wire) < end + 2:
            self._more(deadline)
        self._body += self._wire[start:end]
        self._wire = self._wire[end + 2 :]
        self._ended = not size

    def _take_all(self, deadline: float) -> None:
        """Without a length or chunks, the close ends the body."""
        piece = self._wire or self._receive(deadline)
        self._wire = b""
        self._body += piece
        self._ended = not piece

    def _until(self, mark: bytes, deadline: float) -> bytes:
        while mark not in self._wire:
            self._more(deadline)
        found, _, self._wire = self._wire.partition(mark)
        return found

    def _more(self, deadline: float) -> None:
        piece = self._receive(deadline)
        if not piece:
            raise Truncated(self._body + self._wire)
        self._wire += piece

    def _receive(self, deadline: float) -> bytes:
        remaining = deadline - time.monotonic()
        if remaining <= 0:
            raise TimeoutError(f"nothing complete within {self.timeout} s")
        self.sock.settimeout(remaining)
        return self.sock.recv(65_536)
