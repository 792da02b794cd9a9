"""Talk to the model server: the only file that calls `requests` or catches its errors.

Addresses come from a fixed map, headers are a fixed set, redirects and proxies are off. Every
answer has a connection of its own: that costs a round trip on the same network, and in return no
request ever meets a connection that the other side closed while it lay in a pool, and breaking
one off can never hit another.
"""

import json
import logging
import threading
from collections.abc import Iterator
from http.client import HTTPException
from http.cookiejar import DefaultCookiePolicy
from typing import Any, Protocol

import requests
from django.conf import settings
from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.exceptions import HTTPError, NewConnectionError, ProtocolError, ReadTimeoutError

from gateway.errors import (
    GatewayError,
    UpstreamBroke,
    UpstreamDown,
    UpstreamError,
    UpstreamStalled,
)
from gateway.upstream import error_mapping
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

HEADERS = {
    "Accept": "application/json",
    "Accept-Encoding": "identity",
    "Connection": "close",
    "User-Agent": "ollama-gateway",
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


# --- Sockets that can be found ----------------------------------------------------------------

_current = threading.local()


def _hold(connection: HTTPConnection) -> None:
    """Hand a connection that was just made to the request's Cancellation, and give what is sent on
    it the timeout for the first line: `requests` would give the whole prompt the time to
    connect."""
    cancellation: Cancellation | None = getattr(_current, "cancellation", None)
    if cancellation is not None and connection.sock is not None:
        # Both: urllib3 sets the socket's from the connection's again, once for TLS.
        connection.timeout = _current.timeout
        connection.sock.settimeout(_current.timeout)
        cancellation.attach(connection.sock)


class _Connection(HTTPConnection):
    def connect(self) -> None:
        super().connect()
        _hold(self)


class _TLSConnection(HTTPSConnection):
    def connect(self) -> None:
        super().connect()
        _hold(self)


class _Pool(HTTPConnectionPool):
    ConnectionCls = _Connection

    def _put_conn(self, conn: Any) -> None:
        _close_instead_of_keeping(conn)


class _TLSPool(HTTPSConnectionPool):
    ConnectionCls = _TLSConnection

    def _put_conn(self, conn: Any) -> None:
        _close_instead_of_keeping(conn)


def _close_instead_of_keeping(connection: Any) -> None:
    """Our `Connection: close` binds a server to close, not a pool to forget: a connection whose
    end has not arrived yet would be used again, and break."""
    if connection is not None:
        connection.close()


class _Adapter(HTTPAdapter):
    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, **kwargs)
        self.poolmanager.pool_classes_by_scheme = {"http": _Pool, "https": _TLSPool}


def _new_session() -> requests.Session:
    session = requests.Session()
    # A .netrc entry would overwrite our headers, and HTTP_PROXY would send prompts elsewhere.
    session.trust_env = False
    session.headers = HEADERS  # type: ignore[assignment]
    session.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))
    for scheme in ("http://", "https://"):
        session.mount(scheme, _Adapter(max_retries=0, pool_block=False))
    return session


_session = _new_session()


# --- Answers ------------------------------------------------------------------------------------


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
        self, response: requests.Response, cancellation: Cancellation, longest: int | None = None
    ) -> None:
        self._response = response
        self._cancellation = cancellation
        self._longest = longest or MAX_LINE_BYTES
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


def send(
    route: str,
    body: dict[str, Any] | None,
    cancellation: Cancellation,
    timeout: float | None = None,
    base: str | None = None,
) -> LineStream:
    """Ask the model server and return its answer once its status line is there.

    `timeout`: seconds to wait for that, and `base`: the model server's address, instead of the
    settings. Raises why the Cancellation broke it
    off, before anything is sent if it was by then; UpstreamDown if nobody listens, UpstreamStalled,
    UpstreamBroke, or what its refusal means.
    """
    if cancellation.reason:
        raise cancellation.reason()
    timeout = timeout or settings.UPSTREAM_FIRST_LINE_SECONDS
    cancellation.set_deadline(timeout, UpstreamStalled)
    response = _request(route, body, cancellation, timeout, base or settings.OLLAMA_BASE)
    if response.status_code == 200:
        return ResponseLines(
            response, cancellation, MAX_STREAM_LINE_BYTES if route in STREAMS else None
        )
    try:
        raise _refused(response, (body or {}).get("model", ""))
    finally:
        response.close()


def _request(
    route: str, body: dict[str, Any] | None, cancellation: Cancellation, timeout: float, base: str
) -> requests.Response:
    method, path = ROUTES[route]
    _current.cancellation, _current.timeout = cancellation, timeout
    try:
        return _session.request(
            method,
            base + path,
            json=body,
            timeout=(settings.UPSTREAM_CONNECT_SECONDS, timeout),
            allow_redirects=False,
            stream=True,
        )
    except BREAKS as error:
        raise _as_gateway_error(error, cancellation) from error
    finally:
        _current.cancellation = None


def _refused(response: requests.Response, model: str) -> GatewayError:
    try:
        text = response.raw.read(MAX_ERROR_BYTES, decode_content=False).decode("utf-8", "replace")
    except BREAKS:
        text = ""
    if not 400 <= response.status_code < 600 or response.status_code in (401, 403):
        # A redirect, or a refusal of our Host or Origin: the operator's to mend, not the client's.
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
        logger.error("The model server at %s cannot be reached.", settings.OLLAMA_BASE)
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


# --- Short calls --------------------------------------------------------------------------------


def fetch(
    route: str,
    body: dict[str, Any] | None = None,
    seconds: float = 30.0,
    cancellation: Cancellation | None = None,
    base: str | None = None,
) -> dict[str, Any]:
    """Return the JSON object of a call that does not stream; empty for an empty body.

    With a Cancellation that is looked after, `seconds` bound the whole; else each silence. Raises
    what `send` raises.
    """
    answer = send(route, body, cancellation or Cancellation(None), timeout=seconds, base=base)
    try:
        return _json_object(b"".join(answer.lines()))
    finally:
        answer.close()


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
