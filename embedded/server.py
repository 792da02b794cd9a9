"""Run the embedded model server under gunicorn, with its configuration in code."""

import logging
import os
import re
import socket
import struct
import sys
from importlib.util import find_spec
from typing import Any

from gunicorn.app.base import BaseApplication
from gunicorn.errors import AppImportError

from embedded.engine import Engine
from embedded.model import EMBED_NAME, NAME, EngineMissing, find_model
from embedded.slots import MAX_QUEUED
from embedded.wsgi import Application

# Seconds a client may stay silent in a request, not read its response, or keep an idle connection.
CLIENT_SECONDS = 120
# Requests that need no slot (the version, the list of models) find a thread at a full queue too.
SPARE_THREADS = 32
BACKLOG = 128
# What gunicorn logs after a worker has printed why it cannot load the model.
AFTER_LOAD_ERROR = re.compile(
    r"Worker \(pid:\d+\) exited with code 4|Shutting down: |Reason: App failed"
)


class EmbeddedServer(BaseApplication):  # type: ignore[misc]  # gunicorn has no types
    """Serve on a socket that listens already, until SIGTERM or SIGINT: see `run`."""

    def __init__(self, listener: socket.socket, parallel: int) -> None:
        self._listener = listener
        self._parallel = parallel
        super().__init__()

    def load_config(self) -> None:
        threads = self._parallel + MAX_QUEUED + SPARE_THREADS
        settings = {
            "bind": f"fd://{self._listener.detach()}",
            # One process, because each one loads the model. A thread waits for each request.
            "workers": 1,
            "worker_class": "gthread",
            "threads": threads,
            "worker_connections": 2 * threads,
            "keepalive": CLIENT_SECONDS,
            # Never kill a worker that is slow to load the model.
            "timeout": 0,
            # Running responses are ended at once.
            "graceful_timeout": 2,
            "control_socket_disable": True,
            "http_parser": "python",
            # The gateway has an access log.
            "loglevel": "warning",
            "on_starting": _on_starting,
            "post_worker_init": _post_worker_init,
            "worker_exit": _worker_exit,
        }
        for name, value in settings.items():
            self.cfg.set(name, value)

    def load(self) -> Application:
        """Load the model, in the worker: llama.cpp's threads do not survive a fork."""
        try:
            return Application(Engine(find_model(), self._parallel))
        except EngineMissing as error:
            raise AppImportError(str(error)) from error
        except RuntimeError as error:
            raise AppImportError(f"llama.cpp cannot load the model: {error}") from error


def require_wheels() -> None:
    """Raise EngineMissing unless the packages of the engine are installed."""
    find_model()
    if find_spec("xllamacpp") is None:
        raise EngineMissing("xllamacpp")


def listen(host: str, port: int) -> socket.socket:
    """Return a listening socket; port 0 takes any free one. Raises OSError.

    gunicorn would try for five seconds to bind a port that is taken.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
            # Accepted connections inherit these.
            listener.setsockopt(socket.SOL_SOCKET, option, struct.pack("ll", CLIENT_SECONDS, 0))
        listener.bind((host, port))
        listener.listen(BACKLOG)
    except OSError:
        listener.close()
        raise
    return listener


def url_of(listener: Any) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


# --- gunicorn's hooks ---


def _on_starting(server: Any) -> None:
    logging.getLogger("gunicorn.error").addFilter(_is_news)


def _is_news(record: logging.LogRecord) -> bool:
    return AFTER_LOAD_ERROR.match(record.getMessage()) is None


def _post_worker_init(worker: Any) -> None:
    worker.wsgi.is_stopping = lambda: not worker.alive
    url = url_of(worker.sockets[0])
    sys.stdout.write(f"Embedded engine ({NAME}, {EMBED_NAME}; llama.cpp) on {url}\n")
    sys.stdout.flush()


def _worker_exit(_server: Any, worker: Any) -> None:
    if not isinstance(getattr(worker, "wsgi", None), Application):
        return  # It could not load the model.
    worker.wsgi.engine.close()
    # A thread inside llama.cpp would crash the interpreter on its way out. A thread that waits for
    # a silent client would delay it.
    os._exit(0)
