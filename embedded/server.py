"""The HTTP server of the embedded engine: routes, and its life from start to close."""

import socket
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from socketserver import TCPServer, ThreadingMixIn
from threading import Thread
from time import perf_counter_ns
from typing import Any

from embedded import about
from embedded.demands import (
    Body,
    Demand,
    Texts,
    known,
    read_chat,
    read_embed,
    read_embeddings,
    read_generate,
    read_name,
)
from embedded.engine import Call, Engine, Piece
from embedded.exchange import Exchange
from embedded.model import find_model
from embedded.options import Refused
from embedded.replies import Answer, embed_reply

# Path to method to the name of what serves it. GET answers HEAD as well.
ROUTES = {
    "/": {"GET": "root"},
    "/api/version": {"GET": "version"},
    "/api/tags": {"GET": "tags"},
    "/api/ps": {"GET": "ps"},
    "/api/show": {"POST": "show"},
    "/api/generate": {"POST": "generate"},
    "/api/chat": {"POST": "chat"},
    "/api/embed": {"POST": "embed"},
    "/api/embeddings": {"POST": "embeddings"},
    "/api/pull": {"POST": "pull"},
    "/api/delete": {"DELETE": "delete"},
}


class EmbeddedServer:
    """The embedded engine on a socket. As a context manager it serves in a thread of its own.

    Raises OSError where the address cannot be had, and EngineMissing. Port 0 takes any free one.
    """

    def __init__(self, host: str = "127.0.0.1", port: int = 11434, parallel: int = 4) -> None:
        # The socket first: a port that is taken is told before the model is loaded.
        self._listener = _Listener(host, port)
        try:
            self.engine = self._listener.engine = Engine(find_model(), parallel)
        except BaseException:
            self._listener.server_close()
            raise

    @property
    def url(self) -> str:
        host, port = self._listener.server_address[:2]
        return f"http://[{host!s}]:{port}" if ":" in str(host) else f"http://{host!s}:{port}"

    def __enter__(self) -> "EmbeddedServer":
        # The default looks every half second whether it should stop.
        serve = self._listener.serve_forever
        Thread(target=serve, args=(0.05,), name="embedded-listener", daemon=True).start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> bool:
        """Hang up on everybody and unload the model; say whether all work stopped in time."""
        self._listener.shutdown()
        self._listener.server_close()
        self._listener.hang_up()
        return self.engine.close()


class _Listener(ThreadingMixIn, TCPServer):
    # TCPServer and not HTTPServer, which asks the name service who it is before it listens.
    daemon_threads = True
    block_on_close = False
    allow_reuse_address = True
    request_queue_size = 128
    engine: Engine

    def __init__(self, host: str, port: int) -> None:
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._connections: set[Any] = set()
        super().__init__((host, port), _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        self._connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self._connections.discard(request)
        super().shutdown_request(request)

    def hang_up(self) -> None:
        for connection in list(self._connections):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)


class _Handler(Exchange):
    server: _Listener

    def serve(self) -> None:
        self._began = perf_counter_ns()
        path = self.path.partition("?")[0]
        methods = ROUTES.get(path, {})
        name = methods.get("GET" if self.command == "HEAD" else self.command)
        if name:
            getattr(self, name)()
        elif methods:
            self.send_text("405 method not allowed", 405)
        elif self.command in ROUTES.get(path.rstrip("/"), {}) and path != "/":
            self.redirect(path.rstrip("/"), 301 if self.command == "GET" else 307)
        else:
            self.send_text("404 page not found", 404)

    # Words

    def generate(self) -> None:
        self._reply(read_generate(self.read_object()))

    def chat(self) -> None:
        self._reply(read_chat(self.read_object()))

    def _reply(self, demand: Demand) -> None:
        answer = Answer(demand)
        if demand.call is None:
            act = self.server.engine.unload if demand.unload else self.server.engine.load
            act(known(demand.model))
            self.send_object(answer.loaded(_now()))
        elif demand.stream:
            self.send_line(self._write(demand.call, answer, partial(self._send_chunk, answer)))
            self.end_lines()
        else:
            self.send_object(self._write(demand.call, answer, answer.keep))

    def _write(self, call: Call, answer: Answer, each: Callable[[Piece], None]) -> Body:
        """Have the answer written, piece by piece to `each`, and return its last object."""
        load_ns = self._elapsed()
        truncate = answer.demand.truncate
        ending = self.server.engine.answer(call, each, self.client_waits, truncate=truncate)
        return answer.last(ending, _now(), load_ns, self._elapsed())

    def _send_chunk(self, answer: Answer, piece: Piece) -> None:
        self.send_line(answer.chunk(piece, _now()))

    def _elapsed(self) -> int:
        return perf_counter_ns() - self._began

    # Vectors

    def embed(self) -> None:
        asked = read_embed(self.read_object())
        self.server.engine.load(known(asked.model))
        load_ns = self._elapsed()
        vectors, tokens = self._vectors(asked)
        times = {"total_duration": self._elapsed(), "load_duration": load_ns}
        self.send_object(embed_reply(asked, vectors, tokens, **times))

    def embeddings(self) -> None:
        vectors, _tokens = self._vectors(read_embeddings(self.read_object()))
        self.send_object({"embedding": vectors[0] if vectors else []})

    def _vectors(self, asked: Texts) -> tuple[list[list[float]], int]:
        engine = self.server.engine
        done = [engine.embed(text, asked.truncate, self.client_waits) for text in asked.texts]
        return [vector for vector, _ in done], sum(tokens for _, tokens in done)

    # The model

    def root(self) -> None:
        self.send_text("Ollama is running")

    def version(self) -> None:
        self.send_object({"version": about.VERSION})

    def tags(self) -> None:
        self.send_object(about.tags(self.server.engine.model))

    def ps(self) -> None:
        self.send_object(about.running(self.server.engine.model, self.server.engine.loaded))

    def show(self) -> None:
        name = known(read_name(self.read_object()))
        self.send_object(about.show(self.server.engine.model, name))

    def pull(self) -> None:
        body = self.read_object()
        lines = about.pull_lines(read_name(body), self.server.engine.model)
        if body.get("stream") is False:
            self.send_object(lines[-1], 500 if "error" in lines[-1] else 200)
        else:
            for line in lines:
                self.send_line(line)
            self.end_lines()

    def delete(self) -> None:
        name = known(read_name(self.read_object()))
        raise Refused(400, f"the embedded engine has fixed models: {name} cannot be deleted")


def _now() -> str:
    return datetime.now(UTC).isoformat().replace("+00:00", "Z")
