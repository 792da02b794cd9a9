"""The embedded model server as a subprocess, started through the same entry as its command."""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

from tests.servers.observed_engine import PATH

ROOT = Path(__file__).resolve().parents[2]
MODEL = "smollm2:135m"
EMBED = "smollm2-embed:135m"
# A condition is expected at once. A busy machine takes longer.
WAIT_SECONDS = 120


class EmbeddedModelServer:
    """Use as a context manager. It generates `parallel` responses at a time."""

    def __init__(self, parallel: int = 2) -> None:
        self._command = [sys.executable, "-m", "tests.servers.observed_engine", str(parallel)]

    def __enter__(self) -> Self:
        self._log = tempfile.NamedTemporaryFile(prefix="embedded-", suffix=".log")
        self._process = subprocess.Popen(
            self._command,
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            start_new_session=True,
        )
        assert self._process.stdout is not None
        self.url = self._process.stdout.readline().strip().rpartition(" ")[2]
        assert self.url, self.log()
        return self

    def __exit__(self, *exception: object) -> None:
        self._process.terminate()
        try:
            self._process.wait(WAIT_SECONDS)
        finally:
            if self._process.poll() is None:
                os.killpg(self._process.pid, signal.SIGKILL)
            assert self._process.stdout is not None
            self._process.stdout.close()
            self._log.close()

    def log(self) -> str:
        return Path(self._log.name).read_text(errors="replace")

    # --- Requests ---

    def request(self, method: str, path: str, body: str | bytes | None = None) -> HTTPResponse:
        connection = HTTPConnection(urlsplit(self.url).netloc, timeout=WAIT_SECONDS)
        connection.request(method, path, body)
        return connection.getresponse()

    def get(self, path: str) -> Any:
        return json.loads(self.request("GET", path).read())

    def post(self, path: str, **fields: Any) -> HTTPResponse:
        return self.request("POST", path, json.dumps({"model": MODEL} | fields))

    def reply(self, path: str = "/api/generate", **fields: Any) -> Any:
        """Return the one object of a response that does not stream."""
        return json.loads(self.post(path, stream=False, **fields).read())

    def embed(self, text: Any, **fields: Any) -> Any:
        return self.reply("/api/embed", **{"model": EMBED, "input": text} | fields)

    def lines(self, path: str = "/api/generate", **fields: Any) -> list[Any]:
        return [json.loads(line) for line in self.post(path, **fields)]

    def open_socket(self) -> socket.socket:
        address = urlsplit(self.url)
        return socket.create_connection((address.hostname, address.port), timeout=WAIT_SECONDS)

    def open(self, path: str, **fields: Any) -> socket.socket:
        """Send a request and return its socket."""
        sock = self.open_socket()
        body = json.dumps({"model": MODEL} | fields).encode()
        head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
        sock.sendall(head.encode() + body)
        return sock

    # --- The engine ---

    def state(self) -> dict[str, Any]:
        """Return what the engine does now; see ObservedApplication."""
        state: dict[str, Any] = self.get(PATH)
        return state

    def wait_until(self, condition: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
        """Return the first state that fulfils a condition."""
        deadline = time.monotonic() + WAIT_SECONDS
        while not condition(state := self.state()):
            assert time.monotonic() < deadline, state
            time.sleep(0.02)
        return state
