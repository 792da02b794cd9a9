"""The connection to the model server: one for each answer, never used again."""

import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import pytest

from gateway.errors import ClientDisconnected, ModelNotFound, UpstreamStalled
from gateway.upstream import connections
from gateway.upstream.cancellation import Cancellation
from gateway.upstream.client import configured_client
from tests.fakes.ollama import FakeOllama
from tests.fakes.script import reply

pytestmark = pytest.mark.once  # It needs no database.


def test_a_connection_that_the_server_closed_is_never_used_again(ollama: FakeOllama) -> None:
    """It closes each without announcing it, which a pool learns too late."""
    ollama.answer("/api/delete", reply({"error": "model 'x' not found"}, 404))

    for _ in range(100):
        with pytest.raises(ModelNotFound):
            configured_client().fetch("delete", {"model": "x"})


def test_a_connection_that_the_server_keeps_open_is_closed_by_us(ollama: FakeOllama) -> None:
    ollama.answer("/api/version", reply({"version": "1"}, 200, Connection="keep-alive"))

    assert [configured_client().fetch("version")["version"] for _ in range(20)] == ["1"] * 20

    ollama.wait_idle()
    assert ollama.max_in_flight == 1


# --- A prompt that takes its time -----------------------------------------------------------------

# More than the buffers of two sockets hold, so that who sends it waits for who reads it.
LONG = {"model": "x" * 12_000_000}
CONNECT_SECONDS = 0.3
RATE = 12_000_000.0


class SlowReader:
    """A model server that reads a request at so many bytes a second, then answers `{}`."""

    def __init__(self, rate: float, tls: ssl.SSLContext | None = None) -> None:
        self.rate, self.tls = rate, tls
        self.done = threading.Event()

    def __enter__(self) -> Self:
        self.listener = socket.socket()
        self.listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
        self.listener.bind(("127.0.0.1", 0))
        self.listener.listen()
        scheme = "https" if self.tls else "http"
        self.url = f"{scheme}://127.0.0.1:{self.listener.getsockname()[1]}"
        self.thread = threading.Thread(target=self.serve, daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.done.set()
        self.listener.close()
        self.thread.join(5)

    def serve(self) -> None:
        sock, _ = self.listener.accept()
        with self.tls.wrap_socket(sock, server_side=True) if self.tls else sock as sock:
            read = 0
            while read < len(LONG["model"]) and not self.done.is_set():
                read += len(sock.recv(65_536))
                self.done.wait(65_536 / self.rate)
            if not self.done.is_set():
                sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")


@pytest.fixture
def tls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ssl.SSLContext:
    """A server's TLS, with a certificate that the gateway trusts."""
    if not shutil.which("openssl"):
        pytest.skip("openssl makes the certificate")
    names = ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"]
    files = ["-keyout", str(tmp_path / "key"), "-out", str(tmp_path / "cert")]
    make = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", *names, *files]
    subprocess.run(make, check=True, capture_output=True)
    monkeypatch.setattr(connections.session, "verify", str(tmp_path / "cert"))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "cert", tmp_path / "key")
    return context


@pytest.fixture(params=["http", "https"])
def reader(request: Any, settings: Any) -> Callable[[float], SlowReader]:
    """Return a model server that reads so fast, and whose connection must be made at once."""
    settings.UPSTREAM_CONNECT_SECONDS = CONNECT_SECONDS
    context = request.getfixturevalue("tls") if request.param == "https" else None
    return lambda rate: SlowReader(rate, context)


def test_a_long_prompt_has_more_time_than_a_connection(
    reader: Callable[[float], SlowReader], settings: Any
) -> None:
    with reader(RATE) as server:
        settings.OLLAMA_BASE = server.url
        asked_at = time.monotonic()

        assert configured_client().fetch("show", LONG) == {}
    assert time.monotonic() - asked_at > 2 * CONNECT_SECONDS, "it was no slow reader"


def test_a_prompt_that_nobody_reads_is_given_up_as_silence(
    reader: Callable[[float], SlowReader], settings: Any
) -> None:
    with reader(1) as server, pytest.raises(UpstreamStalled):
        settings.OLLAMA_BASE = server.url
        configured_client().fetch("show", LONG, seconds=2 * CONNECT_SECONDS)


def test_who_leaves_while_the_prompt_is_sent_breaks_it_off(
    reader: Callable[[float], SlowReader], settings: Any
) -> None:
    cancellation = Cancellation(None)
    with reader(1) as server, pytest.raises(ClientDisconnected):
        settings.OLLAMA_BASE = server.url
        leaving = threading.Timer(2 * CONNECT_SECONDS, cancellation.cancel, [ClientDisconnected])
        leaving.start()
        configured_client().ask("show", LONG, cancellation, timeout=20)
