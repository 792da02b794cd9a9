"""A TCP proxy that injects faults between a client and a server.

For example: with Proxy(fake.port) as proxy: proxy.harm(Cut(120)), and each answer breaks off after
120 bytes. A toxic works on one direction of every connection made after `harm`: on what the server
answers, or on what the client sends where `request=True`.
"""

import dataclasses
import select
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Self

READ_BYTES = 65_536
TICK = 0.05  # How late an end is noticed; bytes are noticed at once.
LONGEST_PAUSE = 60.0
LINGER_ZERO = struct.pack("ii", 1, 0)  # Closing a socket with this on sends RST, not FIN.


@dataclass
class Broken(Exception):
    """A toxic ends the connection here."""

    reset: bool


@dataclass
class Toxic:
    """Relays the bytes of one direction, or does not. Each connection has its own copy."""

    request: bool = dataclasses.field(default=False, kw_only=True)

    def passes(self, data: bytes, link: "Link") -> Iterator[bytes]:
        yield data


@dataclass
class Latency(Toxic):
    """Delays all bytes by some seconds."""

    seconds: float

    def passes(self, data: bytes, link: "Link") -> Iterator[bytes]:
        link.pause(self.seconds)
        yield data


@dataclass
class Slicer(Toxic):
    """Sends slices of some bytes, with a pause between them."""

    size: int
    pause: float = 0.0

    def passes(self, data: bytes, link: "Link") -> Iterator[bytes]:
        for at in range(0, len(data), self.size):
            yield data[at : at + self.size]
            link.pause(self.pause)


@dataclass
class Bandwidth(Toxic):
    """Limits the bytes per second."""

    rate: int

    def passes(self, data: bytes, link: "Link") -> Iterator[bytes]:
        step = max(1, self.rate // 20)
        for at in range(0, len(data), step):
            link.pause(step / self.rate)
            yield data[at : at + step]


@dataclass
class Stall(Toxic):
    """Stops after some bytes and keeps the connection open."""

    after: int = 0

    def passes(self, data: bytes, link: "Link") -> Iterator[bytes]:
        yield data[: self.after]
        self.after = max(0, self.after - len(data))


@dataclass
class Cut(Toxic):
    """Ends the connection after some bytes, with FIN or RST."""

    at: int
    reset: bool = False

    def passes(self, data: bytes, link: "Link") -> Iterator[bytes]:
        yield data[: self.at]
        self.at -= len(data)
        if self.at <= 0:
            raise Broken(self.reset)


@dataclass
class Instead(Toxic):
    """Replaces the first bytes, then ends the connection."""

    these: bytes

    def passes(self, data: bytes, link: "Link") -> Iterator[bytes]:
        yield self.these
        raise Broken(reset=False)


@dataclass
class HalfOpen(Toxic):
    """Hides that one side has closed, like a pulled cable."""


class Link:
    """One connection through the proxy: two sockets and a thread for each direction."""

    def __init__(self, client: socket.socket, server: socket.socket) -> None:
        self._sockets = (client, server)
        self._ended = threading.Event()
        self._lock = threading.Lock()
        for sock in self._sockets:
            sock.settimeout(LONGEST_PAUSE)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def start(self, toxics: list[Toxic]) -> None:
        client, server = self._sockets
        for source, target, request in ((client, server, True), (server, client, False)):
            own = [dataclasses.replace(each) for each in toxics if each.request is request]
            _start(self._carry, source, target, own)

    def pause(self, seconds: float) -> None:
        if seconds and self._ended.wait(min(seconds, LONGEST_PAUSE)):
            raise Broken(reset=False)

    def end(self, reset: bool = False) -> None:
        with self._lock:
            self._ended.set()
            for sock in self._sockets:
                if reset and sock.fileno() >= 0:
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_ZERO)
                sock.close()

    def _carry(self, source: socket.socket, target: socket.socket, toxics: list[Toxic]) -> None:
        try:
            while data := self._read(source):
                for piece in self._through(toxics, data):
                    target.sendall(piece)
            if any(isinstance(toxic, HalfOpen) for toxic in toxics):
                self._ended.wait(LONGEST_PAUSE)
            target.shutdown(socket.SHUT_WR)
        except Broken as broken:
            self.end(broken.reset)
        except ConnectionResetError:
            self.end(reset=True)
        except (OSError, ValueError):
            self.end()

    def _read(self, source: socket.socket) -> bytes:
        """The next bytes. Waits without holding the socket, so that `end` can really close it."""
        poll = select.poll()  # Not select: that knows no file above 1023.
        poll.register(source, select.POLLIN)
        while not self._ended.is_set():
            if poll.poll(TICK * 1000):
                return source.recv(READ_BYTES)
        return b""

    def _through(self, toxics: list[Toxic], data: bytes) -> Iterator[bytes]:
        pieces = toxics[0].passes(data, self) if toxics else [data]
        for piece in filter(None, pieces):
            yield from self._through(toxics[1:], piece) if toxics else [piece]


class Proxy:
    """Use as a context manager: connections to `port` go to the server at `target`."""

    def __init__(self, target: int) -> None:
        self.target = target
        self._toxics, self._links = list[Toxic](), list[Link]()
        self._listener: socket.socket | None = None
        self._reserved = _bound(0)
        self.port: int = self._reserved.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        self.up()
        return self

    def __exit__(self, *exception: object) -> None:
        self.down()
        self.cut()
        self._reserved.close()

    def harm(self, *toxics: Toxic) -> None:
        """Apply toxics, in order, to every new connection."""
        self._toxics = list(toxics)

    def heal(self) -> None:
        """Remove all toxics, and accept connections."""
        self.harm()
        self.up()

    def cut(self, reset: bool = False) -> None:
        """End every connection."""
        while self._links:
            self._links.pop().end(reset)

    def down(self) -> None:
        """Refuse new connections. Open ones continue (see `cut`)."""
        if self._listener:
            # Only a shutdown wakes the thread that waits in accept.
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

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
                server = socket.create_connection(("127.0.0.1", self.target), timeout=5)
            except ConnectionRefusedError:
                client.close()
                continue
            except OSError:
                return
            link = Link(client, server)
            self._links.append(link)  # Before its first byte: who has read one can be cut.
            link.start(self._toxics)


def _start(target: Callable[..., None], *args: Any) -> threading.Thread:
    (thread := threading.Thread(target=target, args=args, daemon=True)).start()
    return thread


def _bound(port: int) -> socket.socket:
    """Return a bound socket that refuses connections until it listens."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind(("127.0.0.1", port))
    return sock
