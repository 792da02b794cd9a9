"""The WSGI application of the embedded model server: its routes."""

import logging
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from functools import partial
from time import perf_counter_ns
from typing import Any

from embedded import about
from embedded.engine import Call, Chunk, Engine, EngineError
from embedded.messages import Request, Response, StartResponse, disconnected
from embedded.options import Rejected
from embedded.parsing import (
    Body,
    EmbeddingRequest,
    GenerationRequest,
    known,
    parse_chat,
    parse_embed,
    parse_embeddings,
    parse_generate,
    parse_name,
)
from embedded.replies import Reply, embed_reply
from embedded.slots import ClientDisconnected, QueueFull

# Path to method to the name of the handler. GET handles HEAD too.
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
# Ollama's own text.
BUSY = "server busy, please try again.  maximum pending requests exceeded"

logger = logging.getLogger(__name__)


class Application:
    """Serve one engine. Once `is_stopping` returns True, running responses are ended."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.is_stopping: Callable[[], bool] = lambda: False

    def __call__(self, environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        request = Request(environ)
        response = Response(start_response, omits_body=request.method == "HEAD")
        exchange = Exchange(self, request, response)
        try:
            exchange.serve()
        except (Rejected, EngineError) as error:
            response.send_error(error.message, error.status)
        except QueueFull:
            response.send_error(BUSY, 503)
        except ClientDisconnected:
            raise disconnected() from None
        except OSError:
            raise
        except Exception:
            logger.exception("The embedded engine failed to serve %s", request.path)
            response.send_error("internal error", 500)
        return ()


class Exchange:
    """One request and its response; each route has a method of its name."""

    def __init__(self, application: Application, request: Request, response: Response) -> None:
        self.request = request
        self.response = response
        self._application = application
        self._engine = application.engine
        self._began = perf_counter_ns()

    def serve(self) -> None:
        path, method = self.request.path, self.request.method
        methods = ROUTES.get(path, {})
        handler = methods.get("GET" if method == "HEAD" else method)
        if handler:
            getattr(self, handler)()
        elif methods:
            self.response.send_text("405 method not allowed", 405)
        elif method in ROUTES.get(path.rstrip("/"), {}):
            self.response.redirect(path.rstrip("/"), 301 if method == "GET" else 307)
        else:
            self.response.send_text("404 page not found", 404)

    def _is_wanted(self) -> bool:
        return not self._application.is_stopping() and self.request.is_connected()

    def _elapsed(self) -> int:
        return perf_counter_ns() - self._began

    # --- Text ---

    def generate(self) -> None:
        self._respond(parse_generate(self.request.json_object()))

    def chat(self) -> None:
        self._respond(parse_chat(self.request.json_object()))

    def _respond(self, request: GenerationRequest) -> None:
        reply = Reply(request)
        if request.call is None:
            change = self._engine.unload if request.unload else self._engine.load
            change(known(request.model))
            self.response.send_object(reply.loaded(_now()))
        elif request.stream:
            last = self._generate(request.call, reply, partial(self._send_chunk, reply))
            self.response.send_line(last)
        else:
            self.response.send_object(self._generate(request.call, reply, reply.collect))

    def _generate(self, call: Call, reply: Reply, take: Callable[[Chunk], None]) -> Body:
        """Generate, passing each chunk to `take`, and return the last object of the reply."""
        load_ns = self._elapsed()
        truncate = reply.request.truncate
        completion = self._engine.generate(call, take, self._is_wanted, truncate=truncate)
        return reply.last(completion, _now(), load_ns, self._elapsed())

    def _send_chunk(self, reply: Reply, chunk: Chunk) -> None:
        self.response.send_line(reply.line(chunk, _now()))

    # --- Embeddings ---

    def embed(self) -> None:
        request = parse_embed(self.request.json_object())
        self._engine.load(known(request.model))
        load_ns = self._elapsed()
        vectors, tokens = self._vectors(request)
        durations = {"total_duration": self._elapsed(), "load_duration": load_ns}
        self.response.send_object(embed_reply(request, vectors, tokens, **durations))

    def embeddings(self) -> None:
        vectors, _tokens = self._vectors(parse_embeddings(self.request.json_object()))
        self.response.send_object({"embedding": vectors[0] if vectors else []})

    def _vectors(self, request: EmbeddingRequest) -> tuple[list[list[float]], int]:
        embedded = [
            self._engine.embed(text, request.truncate, self._is_wanted) for text in request.texts
        ]
        return [vector for vector, _tokens in embedded], sum(tokens for _vector, tokens in embedded)

    # --- The models ---

    def root(self) -> None:
        self.response.send_text("Ollama is running")

    def version(self) -> None:
        self.response.send_object({"version": about.VERSION})

    def tags(self) -> None:
        self.response.send_object(about.tags(self._engine.model))

    def ps(self) -> None:
        self.response.send_object(about.running(self._engine.model, self._engine.loaded))

    def show(self) -> None:
        name = known(parse_name(self.request.json_object()))
        self.response.send_object(about.show(self._engine.model, name))

    def pull(self) -> None:
        body = self.request.json_object()
        lines = about.pull_lines(parse_name(body), self._engine.model)
        if body.get("stream") is False:
            self.response.send_object(lines[-1], 500 if "error" in lines[-1] else 200)
        else:
            for line in lines:
                self.response.send_line(line)

    def delete(self) -> None:
        name = known(parse_name(self.request.json_object()))
        raise Rejected(400, f"the embedded engine has fixed models: {name} cannot be deleted")


def _now() -> str:
    return datetime.now(UTC).isoformat().replace("+00:00", "Z")
