"""A model server under test, the fake or a real one, behind the same few calls."""

import json
import os
import socket
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import pytest
import requests

from tests.fakes.ollama import FakeOllama

SECONDS = 120
MODELS = ("chat", "tools", "thinking", "embedding")


@dataclass
class Server:
    """An Ollama. `fake` is the fake itself, for what must be scripted, and None for a real one."""

    url: str
    fake: FakeOllama | None = None
    copies: list[str] = field(default_factory=list)
    _natives: dict[str, bool] = field(default_factory=dict)

    # --- Requests ---

    def call(self, method: str, path: str, body: Any = None, **more: Any) -> requests.Response:
        options = {"timeout": SECONDS, "allow_redirects": False, **more}
        return requests.request(method, self.url + path, json=body, **options)

    def post(self, path: str, **body: Any) -> requests.Response:
        return self.call("POST", path, body)

    def get(self, path: str) -> Any:
        return self.call("GET", path).json()

    def lines(self, path: str, **body: Any) -> list[dict[str, Any]]:
        """The objects of a stream."""
        found = self.post(path, **body)
        assert found.status_code == 200, found.text
        return [json.loads(line) for line in found.content.split(b"\n") if line]

    def whole(self, path: str, **body: Any) -> dict[str, Any]:
        """The one object of a response that does not stream."""
        found = self.post(path, stream=False, **body)
        assert found.status_code == 200, found.text
        answer: dict[str, Any] = found.json()
        return answer

    def refusal(self, path: str, **body: Any) -> tuple[int, str]:
        """The status and the text of an error."""
        found = self.post(path, **body)
        return found.status_code, found.json()["error"]

    def open(self, path: str, **body: Any) -> socket.socket:
        """A request on its own socket, which the test can close."""
        parts = urlsplit(self.url)
        sock = socket.create_connection((parts.hostname, parts.port or 80), timeout=SECONDS)
        data = json.dumps(body).encode()
        head = (
            f"POST {path} HTTP/1.1\r\nHost: {parts.hostname}\r\nContent-Length: {len(data)}\r\n\r\n"
        )
        sock.sendall(head.encode() + data)
        return sock

    # --- Models ---

    def version(self) -> str:
        return str(self.get("/api/version")["version"])

    def loaded(self) -> list[str]:
        return [model["name"] for model in self.get("/api/ps")["models"]]

    def load(self, model: str) -> None:
        """An empty embed loads any model, whatever it can do."""
        self.whole("/api/embed", model=model)

    def unload(self, model: str) -> None:
        self.whole("/api/generate", model=model, keep_alive=0)

    def copy(self, model: str) -> str:
        """A second name for a model, which the run deletes."""
        name = f"contract-copy-{len(self.copies)}:latest"
        found = self.post("/api/copy", source=model, destination=name)
        if found.text == "404 page not found":
            pytest.skip("this server cannot copy a model")
        assert found.status_code == 200, found.text
        self.copies.append(name)
        return name

    def delete(self, model: str) -> requests.Response:
        """Delete a copy of ours; never another's model."""
        assert model in self.copies
        return self.call("DELETE", "/api/delete", {"model": model})

    def is_native(self, model: str) -> bool:
        """Whether llama-server renders the chats of a model, as its errors tell."""
        if model not in self._natives:
            asked = {"messages": [{"role": "user", "content": "hi"}], "think": False}
            schema = {"type": "nonsuch"}
            _status, text = self.refusal(
                "/api/chat", model=model, format=schema, stream=False, **asked
            )
            self._natives[model] = "generate parser" in text
        return self._natives[model]

    def tidy(self, loaded_before: list[str]) -> None:
        """Leave the models in memory, and on disk, that were there."""
        for name in self.copies:
            self.call("DELETE", "/api/delete", {"model": name})
        for name in self.loaded():
            if name not in loaded_before:
                self.unload(name)
        for name in loaded_before:
            if name not in self.loaded():
                self.load(name)


def real_url() -> str:
    """The address of the real server the facts are asked of; empty for the fake."""
    return os.environ.get("CONTRACT_OLLAMA", "").rstrip("/")


def given_models() -> dict[str, str]:
    """The models of the real server that may be used, by what they can do."""
    given = {name: os.environ.get(f"CONTRACT_{name.upper()}", "") for name in MODELS}
    return {name: model for name, model in given.items() if model}
