"""The model server's connection ends at each byte of a response, for every family of clients.

The gateway runs in this process, so that hundreds of cuts take seconds.
"""

import http.client
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from billing.models import Hold, TokenUsage
from tests.fakes.script import rendered, reply, tokens
from tests.faults.conftest import books_balance, figure, looks_complete
from tests.harness.callers import Caller

SAID = [{"role": "user", "content": "hello there"}]
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "ollama generate": ("/api/generate", {"prompt": "hello there"}),
    "ollama chat": ("/api/chat", {"messages": SAID}),
    "rest generate": ("/generate", {"prompt": "hello there", "stream": True}),
    "rest whole": ("/generate", {"prompt": "hello there"}),
    "openai chat": ("/v1/chat/completions", {"messages": SAID, "stream": True}),
    "openai responses": ("/v1/responses", {"input": "hello there", "stream": True}),
    "anthropic": ("/v1/messages", {"messages": SAID, "max_tokens": 50, "stream": True}),
}
# What the gateway asks for before it sends a prompt.
LISTINGS = (b"/api/tags", b"/api/ps")
LISTING = rendered(reply({"models": [{"name": "llama3:latest", "model": "llama3:latest"}]}))


@pytest.fixture
def bare(settings: Any) -> Iterator["BareUpstream"]:
    """A model server with one model in memory, which answers every prompt with the same bytes."""
    with BareUpstream() as upstream:
        settings.OLLAMA_BASE = f"http://127.0.0.1:{upstream.port}"
        yield upstream


class BareUpstream:
    """A minimal server, so that hundreds of cuts take seconds."""

    def __enter__(self) -> "BareUpstream":
        self.answer = b""
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _serve(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            with sock, sock.makefile("rb") as reader:
                path = reader.readline().split()[1]
                length = http.client.parse_headers(reader)["Content-Length"]
                reader.read(int(length or 0))
                sock.sendall(LISTING if path in LISTINGS else self.answer)


@pytest.mark.parametrize(("path", "fields"), FAMILIES.values(), ids=FAMILIES)
def test_no_cut_at_any_byte_looks_complete(
    bare: BareUpstream, alice: Caller, priced: Any, path: str, fields: dict[str, Any]
) -> None:
    upstream = "/api/generate" if "generate" in path else "/api/chat"
    wire = rendered(tokens(["Hel", "lo"], path=upstream))
    # From this byte on the last line is complete, and so is the response.
    whole_from = wire.rindex(b"}\n") + 2

    for at in range(len(wire) + 1):
        bare.answer = wire[:at]
        response = alice.post(path, {"model": "llama3", **fields})
        if response.streaming:
            complete = looks_complete(b"".join(response.streaming_content))
        else:
            complete = response.status_code == 200
        assert complete is (at >= whole_from), f"{path} cut at byte {at} of {len(wire)}"

    cuts = len(wire) + 1
    figure(f"{path}: {cuts} cuts, 0 looked complete that were not")
    rows = TokenUsage.objects
    assert rows.count() == Hold.objects.count() == cuts
    assert rows.filter(billed=True).count() == cuts - whole_from
    assert rows.filter(billed=True).exclude(outcome="complete").count() == 0
    books_balance()
