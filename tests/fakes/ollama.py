"""A fake Ollama: a real HTTP server that plays scripts and records its requests.

Without a script it behaves well (`behaviour.py`); `answer` queues scripts (`script.py`).
"""

import contextlib
import http.client
import json
import select
import socket
import struct
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, BinaryIO, Self

from tests.fakes import behaviour
from tests.fakes.memory import Memory
from tests.fakes.script import Answer, Interrupted, Step, flatten

# Limits how long an idle connection or a client that never reads keeps a thread.
SOCKET_TIMEOUT = 60.0
REQUESTS_A_CONNECTION = 10_000
LONGEST_LINE = 65_536
# With this option, closing a socket sends RST instead of FIN.
LINGER_ZERO = struct.pack("ii", 1, 0)
# The gateway sends these on its own when its copy is too old. They are recorded separately, so that
# a test sees only its own requests.
LOOKS = {("GET", "/api/tags"), ("GET", "/api/ps")}


@dataclass(eq=False)
class Received:
    """A received request, and the state of its connection."""

    method: str
    target: str
    headers: http.client.HTTPMessage
    body: bytes
    at: float = field(default_factory=time.monotonic)
    left: threading.Event = field(default_factory=threading.Event)
    left_at: float | None = None
    finished: threading.Event = field(default_factory=threading.Event)
    wake: threading.Event = field(default_factory=threading.Event, repr=False)
    answer: Answer | None = field(default=None, repr=False)

    @property
    def path(self) -> str:
        return self.target.split("?", 1)[0]

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def is_look(self) -> bool:
        return (self.method, self.path) in LOOKS

    @property
    def lines_sent(self) -> int:
        return self.answer.lines if self.answer else 0

    def leave(self) -> None:
        """The client disconnected before its response was complete."""
        if not self.wake.is_set():
            self.left_at = time.monotonic()
            self.left.set()
            self.wake.set()


Script = Callable[[Received], Any]


class FakeOllama:
    """Use as a context manager; `url` is what the gateway's OLLAMA_BASE should be."""

    def __init__(self, models: tuple[str, ...] = behaviour.MODELS) -> None:
        self._installed = models
        self._listener: socket.socket | None = None
        self._reserved = _bound(0)
        self.port: int = self._reserved.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._changed = threading.Condition(threading.RLock())
        self._epoll = select.epoll()
        self._stopped = threading.Event()
        self._sockets: set[socket.socket] = set()
        self._in_flight: dict[int, Received] = {}
        self._forget()

    def __enter__(self) -> Self:
        self._watcher = _start(self._cancellation)
        self.up()
        return self

    def __exit__(self, *exception: object) -> None:
        self.down()
        self.cut()
        self._stopped.set()
        self._watcher.join(1)
        self._epoll.close()
        self._reserved.close()

    # --- Scripts and faults -----------------------------------------------------------------

    def answer(self, path: str, *script: Any, times: int | None = None) -> None:
        """Play this script for the next `times` requests on a path, or for all until `reset`.

        The script is steps, lists of steps, or one function from a `Received` to steps.
        """
        chosen: Script = script[0] if len(script) == 1 and callable(script[0]) else lambda _: script
        if times is None:
            self._standing[path] = chosen
        else:
            self._queued[path].extend([chosen] * times)

    def down(self) -> None:
        """Refuse new connections. Open ones continue (see `cut`)."""
        if self._listener:
            # Only a shutdown wakes the thread in accept.
            self._listener.shutdown(socket.SHUT_RDWR)
            self._listener.close()
            self._listener = None
            self._acceptor.join(1)
            self._reserved = _bound(self.port)

    def up(self) -> None:
        """Accept connections again, on the same port."""
        if not self._listener:
            self._listener = self._reserved
            self._listener.listen(512)
            self._acceptor = _start(self._accept, self._listener)

    def cut(self) -> None:
        """Close every open connection, like a server that crashes."""
        with self._changed:
            for handle, received in list(self._in_flight.items()):
                self._settle(handle)
                received.wake.set()
            for sock in self._sockets:
                _shut(sock)
            self._sockets.clear()

    def reset(self) -> None:
        """Return to the initial state: no requests, scripts or connections, the first models."""
        self.cut()
        self._forget()
        self.up()

    # --- Recorded requests ------------------------------------------------------------------

    def calls(self, path: str) -> list[Received]:
        """Return the requests on a path, including the gateway's own."""
        with self._changed:
            return [one for one in [*self.requests, *self.looks] if one.path == path]

    def wait_for(self, n: int, path: str | None = None, timeout: float = 5) -> list[Received]:
        """Wait for `n` requests (on a path) and return them; raise AssertionError on timeout."""

        def found() -> list[Received]:
            return self.calls(path) if path else list(self.requests)

        with self._changed:
            enough = self._changed.wait_for(lambda: len(found()) >= n, timeout)
            assert enough, f"{len(found())} of {n} requests came in {timeout} s"
            return found()

    def wait_idle(self, timeout: float = 5) -> None:
        """Wait until no response is being written."""
        with self._changed:
            idle = self._changed.wait_for(lambda: not self._answering(), timeout)
            assert idle, f"{self.in_flight} answers still written after {timeout} s"

    @property
    def in_flight(self) -> int:
        """Return how many responses are being written, except to the gateway's own requests."""
        with self._changed:
            self._sweep()
            return len(self._answering())

    @property
    def open_looks(self) -> int:
        with self._changed:
            self._sweep()
            return len(self._in_flight) - len(self._answering())

    def _answering(self) -> list[Received]:
        return [received for received in self._in_flight.values() if not received.is_look]

    # --- Connections ------------------------------------------------------------------------

    def _forget(self) -> None:
        self.models = list(self._installed)
        self.memory = Memory()
        self.prompts: set[str] = set()
        self.requests: list[Received] = []
        self.looks: list[Received] = []
        self.max_in_flight = 0
        self._queued: defaultdict[str, deque[Script]] = defaultdict(deque)
        self._standing: dict[str, Script] = {}

    def _accept(self, listener: socket.socket) -> None:
        while not self._stopped.is_set():
            try:
                sock, _ = listener.accept()
            except OSError:
                return
            with self._changed:
                self._sockets.add(sock)
            _start(self._serve, sock)

    def _serve(self, sock: socket.socket) -> None:
        sock.settimeout(SOCKET_TIMEOUT)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with sock, sock.makefile("rb") as reader:
            try:
                self._converse(sock, reader)
            finally:
                with self._changed:
                    self._sockets.discard(sock)

    def _converse(self, sock: socket.socket, reader: BinaryIO) -> None:
        for _ in range(REQUESTS_A_CONNECTION):
            received = _read(reader)
            if received is None or not self._exchange(sock, received):
                return

    def _exchange(self, sock: socket.socket, received: Received) -> bool:
        """Record a request and play its script; return whether the connection stays open."""
        handle = sock.fileno()
        played = Answer(sock.sendall, received.wake, received.method == "HEAD")
        received.answer = played
        try:
            self._begin(sock, received)
            played.play(self._script(received), lambda: self._settle(handle))
        except Interrupted:
            return False
        except OSError:
            received.leave()
            return False
        finally:
            self._settle(handle)
        received.finished.set()
        if played.ending == "reset":
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_ZERO)
        return played.ending == "keep" and _stays(received)

    def _script(self, received: Received) -> list[Step]:
        with self._changed:
            queued = self._queued[received.path]
            script = queued.popleft() if queued else self._standing.get(received.path)
        before = self.memory.steps(received.path, received.body, self.models)
        if script:
            return [*before, *flatten(script(received))]
        loaded = self.memory.listed(self.models)
        answer = behaviour.answer(received, self.models, loaded, self.prompts)
        if received.path == "/api/copy":
            self.memory.copy(received.json["source"], received.json["destination"])
        return [*before, *answer]

    def _begin(self, sock: socket.socket, received: Received) -> None:
        with self._changed:
            if sock not in self._sockets:
                raise Interrupted
            # Connections that just ended must not count as in flight.
            self._sweep()
            self._in_flight[sock.fileno()] = received
            self._epoll.register(sock, select.EPOLLRDHUP)
            self.max_in_flight = max(self.max_in_flight, len(self._answering()))
            (self.looks if received.is_look else self.requests).append(received)
            self._changed.notify_all()

    def _settle(self, handle: int) -> None:
        """From here on a disconnect does not count: the response has been sent."""
        with self._changed:
            if self._in_flight.pop(handle, None):
                self._epoll.unregister(handle)
                self._changed.notify_all()

    def _cancellation(self) -> None:
        """Notice disconnects at once, also while a script sleeps."""
        while not self._stopped.is_set():
            if self._epoll.poll(0.05):
                with self._changed:
                    self._sweep()

    def _sweep(self) -> None:
        # Checked again under the lock: the descriptor may belong to another connection by now.
        for handle, _ in self._epoll.poll(0):
            self._in_flight[handle].leave()
            self._settle(handle)


def _start(target: Callable[..., None], *args: Any) -> threading.Thread:
    thread = threading.Thread(target=target, args=args, daemon=True)
    thread.start()
    return thread


def _bound(port: int) -> socket.socket:
    """Return a bound socket that refuses connections until it listens."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind(("127.0.0.1", port))
    return sock


def _stays(received: Received) -> bool:
    return received.headers.get("Connection", "").lower() != "close"


def _shut(sock: socket.socket) -> None:
    # The peer may have been quicker.
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)


def _read(reader: BinaryIO) -> Received | None:
    """Return the next request, or None if the connection has ended."""
    try:
        method, target, _ = reader.readline(LONGEST_LINE).decode("latin-1").split()
        headers = http.client.parse_headers(reader)
        return Received(method, target, headers, _read_body(reader, headers))
    except (ValueError, OSError, http.client.HTTPException):
        return None


def _read_body(reader: BinaryIO, headers: http.client.HTTPMessage) -> bytes:
    if headers.get("Transfer-Encoding", "").lower() != "chunked":
        return reader.read(int(headers.get("Content-Length", 0)))
    body = b""
    while size := int(reader.readline(LONGEST_LINE), 16):
        body += reader.read(size)
        reader.readline(LONGEST_LINE)
    reader.readline(LONGEST_LINE)
    return body
