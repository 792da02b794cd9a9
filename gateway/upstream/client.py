"""Talk to a model server. Only this module and `connections` use `requests`.

The routes are a fixed map; headers come from `connections`.
"""

import json
import logging
from collections.abc import Iterator
from http.client import HTTPException
from typing import Any, Protocol

import requests
from django.conf import settings
from urllib3.exceptions import HTTPError, NewConnectionError, ProtocolError, ReadTimeoutError

from gateway.errors import (
    GatewayError,
    UpstreamBroke,
    UpstreamDown,
    UpstreamError,
    UpstreamStalled,
)
from gateway.upstream import connections, error_mapping
from gateway.upstream.cancellation import Cancellation

logger = logging.getLogger(__name__)

ROUTES = {
    "generate": ("POST", "/api/generate"),
    "chat": ("POST", "/api/chat"),
    "embed": ("POST", "/api/embed"),
    "tags": ("GET", "/api/tags"),
    "show": ("POST", "/api/show"),
    "ps": ("GET", "/api/ps"),
    "version": ("GET", "/api/version"),
    "pull": ("POST", "/api/pull"),
    "delete": ("DELETE", "/api/delete"),
}

READ_BYTES = 64 * 1024
# A line of a stream holds a few tokens, or one tool call; an embedding of many texts is one line of
# many megabytes.
MAX_LINE_BYTES = 64 * 1024 * 1024
MAX_STREAM_LINE_BYTES = 4 * 1024 * 1024
STREAMS = ("generate", "chat")
MAX_ERROR_BYTES = 16 * 1024

# Faults of a connection while an answer is read. ValueError: a socket closed under the reader.
BREAKS = (requests.RequestException, HTTPError, HTTPException, OSError, ValueError)


# --- Responses -----------------------------------------------------------------------------------


class LineStream(Protocol):
    """A response that is read line by line."""

    @property
    def is_framed(self) -> bool:
        """Tell whether HTTP says where the response ends. If only the close of the connection ends
        it, an end cannot be told from a break."""

    def lines(self) -> Iterator[bytes]:
        """Yield the lines up to the end of the response; raise GatewayError."""

    def close(self) -> None:
        """Close the connection, at any time."""


class ResponseLines:
    """The lines of one HTTP response."""

    def __init__(
        self, response: requests.Response, cancellation: Cancellation, longest: int = MAX_LINE_BYTES
    ) -> None:
        self._response = response
        self._cancellation = cancellation
        self._longest = longest
        self.is_framed = response.raw.chunked or "Content-Length" in response.headers

    def lines(self) -> Iterator[bytes]:
        """Yield the answer's lines, cut at the byte `\\n` only; the last may lack its newline.
        Blank lines are skipped.

        Raises UpstreamBroke, UpstreamStalled, or why the Cancellation broke it off.
        """
        buffer = bytearray()
        while piece := self._read():
            start = len(buffer)
            buffer += piece
            while (end := buffer.find(b"\n", start)) >= 0:
                line = bytes(buffer[:end])
                if line.strip():
                    yield line
                del buffer[: end + 1]
                start = 0
            if len(buffer) > self._longest:
                raise UpstreamBroke()
        yield from self._rest(bytes(buffer))

    def _rest(self, rest: bytes) -> Iterator[bytes]:
        """Yield what stands after the last newline; raise why the Cancellation broke the answer
        off.

        Where only the close ends an answer, our break-off reads like its end. What is left is then
        half a line, unless it was the whole last one that came in the same moment.
        """
        if rest.strip() and not (self._cancellation.reason and _is_half(rest)):
            yield rest
        if self._cancellation.reason:
            raise self._cancellation.reason()

    def _read(self) -> bytes:
        try:
            return bytes(self._response.raw.read1(READ_BYTES, decode_content=False))
        except BREAKS as error:
            raise _as_gateway_error(error, self._cancellation) from error

    def close(self) -> None:
        self._response.close()


def _is_half(line: bytes) -> bool:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return True
    return False


def _refused(response: requests.Response, model: str) -> GatewayError:
    try:
        text = response.raw.read(MAX_ERROR_BYTES, decode_content=False).decode("utf-8", "replace")
    except BREAKS:
        text = ""
    if not 400 <= response.status_code < 600 or response.status_code in (401, 403):
        # A redirect, or a rejected Host or Origin: the operator has to fix it, not the client.
        logger.error("The model server answered %s; check OLLAMA_BASE.", response.status_code)
        return UpstreamError()
    return error_mapping.from_status(response.status_code, text, model)


def _as_gateway_error(error: Exception, cancellation: Cancellation) -> GatewayError:
    """Translate a fault of the connection to the most specific error of ours."""
    if cancellation.reason:
        return cancellation.reason()
    if _waited_too_long(error):
        return UpstreamStalled()
    if isinstance(error, (requests.ConnectTimeout, NewConnectionError)) or _never_connected(error):
        return UpstreamDown()
    return UpstreamBroke()


def _waited_too_long(error: Exception) -> bool:
    """Tell a read that timed out, or a write, which urllib3 and `requests` both wrap."""
    cause = error.args[0] if error.args else None
    if isinstance(cause, ProtocolError):
        error = cause.args[-1]
    return isinstance(error, (requests.ReadTimeout, ReadTimeoutError, TimeoutError))


def _never_connected(error: Exception) -> bool:
    """Tell whether `requests` wraps a connection that could not be made."""
    cause = error.args[0] if error.args else None
    return isinstance(getattr(cause, "reason", None), NewConnectionError)


def _json_object(body: bytes) -> dict[str, Any]:
    if not body:
        return {}
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        raise UpstreamBroke() from None
    if not isinstance(value, dict):
        raise UpstreamBroke()
    return value


# --- The client ----------------------------------------------------------------------------------


class OllamaClient:
    """One model server, by its base URL."""

    def __init__(self, base: str, session: requests.Session = connections.session) -> None:
        self.base = base
        self._session = session

    def ask(
        self,
        route: str,
        body: dict[str, Any] | None,
        cancellation: Cancellation,
        timeout: float | None = None,
    ) -> LineStream:
        """Ask the model server and return its response as soon as its status line has come.

        `timeout`: how many seconds that may take; by default UPSTREAM_FIRST_LINE_SECONDS.
        Raises the Cancellation's reason, before anything is sent if it has one by then;
        UpstreamDown if nothing listens, UpstreamStalled, UpstreamBroke, or what an error response
        means.
        """
        if cancellation.reason:
            raise cancellation.reason()
        timeout = timeout or settings.UPSTREAM_FIRST_LINE_SECONDS
        cancellation.set_deadline(timeout, UpstreamStalled)
        response = self._send(route, body, cancellation, timeout)
        if response.status_code == 200:
            longest = MAX_STREAM_LINE_BYTES if route in STREAMS else MAX_LINE_BYTES
            return ResponseLines(response, cancellation, longest)
        try:
            raise _refused(response, (body or {}).get("model", ""))
        finally:
            response.close()

    def fetch(
        self,
        route: str,
        body: dict[str, Any] | None = None,
        seconds: float = 30.0,
        cancellation: Cancellation | None = None,
    ) -> dict[str, Any]:
        """Return the JSON object of a call that does not stream; empty for an empty body.

        With a Cancellation that the disconnect_monitor watches, `seconds` limit the whole call;
        else each silence. Raises what `ask` raises.
        """
        response = self.ask(route, body, cancellation or Cancellation(None), timeout=seconds)
        try:
            return _json_object(b"".join(response.lines()))
        finally:
            response.close()

    def _send(
        self, route: str, body: dict[str, Any] | None, cancellation: Cancellation, timeout: float
    ) -> requests.Response:
        method, path = ROUTES[route]
        call = connections.Call(cancellation, timeout)
        try:
            call.prepare(method, self.base + path, headers=connections.HEADERS, json=body)
            return self._session.send(
                call,
                timeout=(settings.UPSTREAM_CONNECT_SECONDS, timeout),
                allow_redirects=False,
                stream=True,
            )
        except BREAKS as error:
            fault = _as_gateway_error(error, cancellation)
            if isinstance(fault, UpstreamDown):
                logger.error("The model server at %s cannot be reached.", self.base)
            raise fault from error


_clients: dict[str, OllamaClient] = {}


def configured_client() -> OllamaClient:
    """Return the client of the model server at OLLAMA_BASE."""
    base = settings.OLLAMA_BASE
    return _clients.get(base) or _clients.setdefault(base, OllamaClient(base))
