"""One HTTP request and its answer on a plain socket: bodies, JSON objects, lines, hang-ups."""

import json
import logging
import select
import socket
from http.server import BaseHTTPRequestHandler
from typing import Any

from embedded.engine import EngineError
from embedded.options import Refused
from embedded.queueing import ClientDisconnected, QueueFull

MAX_BODY_BYTES = 32 * 1024 * 1024
BUSY = "server busy, please try again.  maximum pending requests exceeded"

logger = logging.getLogger(__name__)


class Exchange(BaseHTTPRequestHandler):
    """Serve one connection, request by request; a subclass says what in `serve`."""

    protocol_version = "HTTP/1.1"
    server_version = "embedded-ollama"
    error_message_format = "%(code)d %(message)s"
    error_content_type = "text/plain; charset=utf-8"
    disable_nagle_algorithm = True

    # Seconds a client may stay silent between requests, or not read what it is sent.
    timeout = 120

    body = b""
    _in_stream = False

    def serve(self) -> None:
        raise NotImplementedError

    def setup(self) -> None:
        super().setup()
        self._readable = select.poll()
        self._readable.register(self.connection, select.POLLIN)

    def handle(self) -> None:
        try:
            super().handle()
        except OSError:
            self.close_connection = True

    def _respond(self) -> None:
        """Read the body, serve the request and turn whatever goes wrong into an answer."""
        self._in_stream = False
        try:
            self.body = self._read_body()
            self.serve()
        except (Refused, EngineError) as error:
            self._fail(error.status, error.message)
        except QueueFull:
            self._fail(503, BUSY)
        except (ClientDisconnected, OSError):
            self.close_connection = True
        except Exception:
            logger.exception("The embedded engine failed to serve %s", self.path)
            self._fail(500, "internal error")

    # The base class looks methods up by these names.
    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = do_OPTIONS = _respond

    # The request

    def read_object(self) -> dict[str, Any]:
        """Return the body's JSON object; raise Refused."""
        if not self.body.strip():
            raise Refused(400, "missing request body")
        try:
            value, _rest = READER.raw_decode(self.body.decode().lstrip())
        except RecursionError:
            raise Refused(400, "the body is nested too deeply") from None
        except ValueError as error:
            raise Refused(400, f"invalid JSON: {error}") from None
        if not isinstance(value, dict):
            raise Refused(400, "the body must be a JSON object")
        # Go matches names without regard to case, and the last one counts.
        return {name.casefold(): field for name, field in value.items()}

    def client_waits(self) -> bool:
        """Say whether the client is still there: a socket that is readable but empty was closed."""
        if not self._readable.poll(0):
            return True
        try:
            return bool(self.connection.recv(1, socket.MSG_PEEK))
        except OSError:
            return False

    def _read_body(self) -> bytes:
        length = self.headers.get("Content-Length", "0")
        if "Transfer-Encoding" in self.headers or not (length.isascii() and length.isdigit()):
            self.close_connection = True
            raise Refused(411, "send the body with a Content-Length")
        if int(length) > MAX_BODY_BYTES:
            self._discard(int(length))
            raise Refused(413, f"the body is larger than {MAX_BODY_BYTES} bytes")
        return self.rfile.read(int(length))

    def _discard(self, length: int) -> None:
        """Read past a body: closing on unread bytes would reset the connection and the answer."""
        self.close_connection = True
        left = min(length, 4 * MAX_BODY_BYTES)
        while left > 0 and (part := self.rfile.read(min(left, 64 * 1024))):
            left -= len(part)

    # The answer

    def redirect(self, path: str, status: int) -> None:
        self.send_response(status)
        self.send_header("Location", path)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def send_object(self, value: dict[str, Any], status: int = 200) -> None:
        self._send(status, json.dumps(value).encode(), "application/json; charset=utf-8")

    def send_text(self, text: str, status: int = 200) -> None:
        self._send(status, text.encode(), "text/plain; charset=utf-8")

    def _send(self, status: int, body: bytes, media_type: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", media_type)
        self.send_header("Content-Length", str(len(body)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def send_line(self, value: dict[str, Any]) -> None:
        """Send one line of a stream at once; the first one sends the headers too."""
        if not self._in_stream:
            self._start_stream()
        line = json.dumps(value).encode() + b"\n"
        self.wfile.write(b"%x\r\n%b\r\n" % (len(line), line) if self._is_chunked else line)

    def end_lines(self) -> None:
        if self._is_chunked:
            self.wfile.write(b"0\r\n\r\n")

    @property
    def _is_chunked(self) -> bool:
        return self.request_version != "HTTP/1.0"

    def _start_stream(self) -> None:
        self._in_stream = True
        self.send_response(200)
        self.send_header("Content-Type", "application/x-ndjson")
        if self._is_chunked:
            self.send_header("Transfer-Encoding", "chunked")
        else:
            self.close_connection = True
        self.end_headers()

    def _fail(self, status: int, message: str) -> None:
        """Tell the client what went wrong, in the way that is still open."""
        try:
            if self._in_stream:
                self.send_line({"error": message})
                self.end_lines()
            else:
                self.send_object({"error": message}, status)
        except OSError:
            self.close_connection = True

    def version_string(self) -> str:
        return self.server_version

    def log_message(self, *args: Any, **kwargs: Any) -> None:
        """Keep quiet: the gateway in front has its own log."""


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")


# What follows the first value is not read.
READER = json.JSONDecoder(parse_constant=_no_constant)
