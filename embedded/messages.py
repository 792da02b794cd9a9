"""A request and its response over WSGI: JSON bodies, JSON objects, NDJSON streams, disconnects."""

import json
import select
import socket
from collections.abc import Callable
from errno import ECONNRESET
from http import HTTPStatus
from typing import Any

from embedded.options import Rejected

MAX_BODY_BYTES = 32 * 1024 * 1024
# Of a larger body this much is read and dropped: with unread bytes, closing the connection would
# reset it, and the client would not see the response.
MAX_DROPPED_BYTES = 4 * MAX_BODY_BYTES
READ_BYTES = 64 * 1024

StartResponse = Callable[..., Callable[[bytes], object]]


class Request:
    """One request, read from gunicorn's WSGI environment."""

    def __init__(self, environ: dict[str, Any]) -> None:
        self.method: str = environ["REQUEST_METHOD"]
        self.path: str = environ["PATH_INFO"]
        self._environ = environ
        self._socket: socket.socket = environ["gunicorn.socket"]
        self._readable = select.poll()
        self._readable.register(self._socket, select.POLLIN)

    def json_object(self) -> dict[str, Any]:
        """Return the JSON object in the body; raise Rejected."""
        text = self._body()
        if not text.strip():
            raise Rejected(400, "missing request body")
        try:
            value, _rest = DECODER.raw_decode(text.decode().lstrip())
        except RecursionError:
            raise Rejected(400, "the body is nested too deeply") from None
        except ValueError as error:
            raise Rejected(400, f"invalid JSON: {error}") from None
        if not isinstance(value, dict):
            raise Rejected(400, "the body must be a JSON object")
        # Go ignores the case of names. Of several equal names the last one counts.
        return {name.casefold(): field for name, field in value.items()}

    def is_connected(self) -> bool:
        """Tell whether the client is connected: a readable socket without data was closed."""
        if not self._readable.poll(0):
            return True
        try:
            return bool(self._socket.recv(1, socket.MSG_PEEK))
        except OSError:
            return False

    def _body(self) -> bytes:
        body: bytes = self._read(MAX_BODY_BYTES + 1)
        if len(body) > MAX_BODY_BYTES:
            left = MAX_DROPPED_BYTES
            while left > 0 and (part := self._read(READ_BYTES)):
                left -= len(part)
            raise Rejected(413, f"the body is larger than {MAX_BODY_BYTES} bytes")
        return body

    def _read(self, size: int) -> bytes:
        try:
            part: bytes = self._environ["wsgi.input"].read(size)
        except OSError as error:
            # The client sent nothing for as long as the socket waits.
            raise disconnected() from error
        return part


class Response:
    """One response, written through the callable that start_response returns.

    WSGI's other way, an iterator, would need a second thread and a queue for each stream: llama.cpp
    calls back with each token in the thread that asked.
    """

    def __init__(self, start_response: StartResponse, *, omits_body: bool = False) -> None:
        self._start_response = start_response
        self._omits_body = omits_body
        self._write: Callable[[bytes], object] | None = None

    def send_object(self, value: dict[str, Any], status: int = 200) -> None:
        self._send(status, json.dumps(value).encode(), "application/json; charset=utf-8")

    def send_text(self, text: str, status: int = 200) -> None:
        self._send(status, text.encode(), "text/plain; charset=utf-8")

    def redirect(self, path: str, status: int) -> None:
        self._start(status, [("Location", path), ("Content-Length", "0")])

    def send_line(self, value: dict[str, Any]) -> None:
        """Send one line of a stream at once; the first line sends the headers too."""
        write = self._write or self._start(200, [("Content-Type", "application/x-ndjson")])
        try:
            write(json.dumps(value).encode() + b"\n")
        except OSError as error:
            raise disconnected() from error

    def send_error(self, message: str, status: int) -> None:
        """Send an error: as a line of its own if the stream has begun."""
        if self._write:
            self.send_line({"error": message})
        else:
            self.send_object({"error": message}, status)

    def _send(self, status: int, body: bytes, media_type: str) -> None:
        headers = [("Content-Type", media_type), ("Content-Length", str(len(body)))]
        write = self._start(status, headers)
        try:
            write(b"" if self._omits_body else body)
        except OSError as error:
            raise disconnected() from error

    def _start(self, status: int, headers: list[tuple[str, str]]) -> Callable[[bytes], object]:
        line = f"{status} {HTTPStatus(status).phrase}"
        self._write = self._start_response(line, headers)
        return self._write


def disconnected() -> ConnectionResetError:
    """Return the error on which gunicorn closes the connection and logs nothing."""
    return ConnectionResetError(ECONNRESET, "the client is gone")


def _reject_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")


# Bytes after the first value are ignored.
DECODER = json.JSONDecoder(parse_constant=_reject_constant)
