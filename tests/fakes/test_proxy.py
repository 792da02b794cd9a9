"""The proxy injects the faults it is told to, and no others."""

import time
from collections.abc import Iterator

import pytest

from tests.fakes.ollama import FakeOllama
from tests.fakes.proxy import (
    Bandwidth,
    Cut,
    HalfOpen,
    Instead,
    Latency,
    Proxy,
    Slicer,
    Stall,
    Toxic,
)
from tests.fakes.script import Sleep, tokens
from tests.servers.client import RawClient, Truncated

pytestmark = pytest.mark.once  # It needs no database.

ASKED = {"model": "llama3", "prompt": "hi"}


@pytest.fixture
def ollama() -> Iterator[FakeOllama]:
    with FakeOllama() as fake:
        yield fake


@pytest.fixture
def proxy(ollama: FakeOllama) -> Iterator[Proxy]:
    with Proxy(ollama.port) as between:
        yield between


def ask(proxy: Proxy, timeout: float = 5) -> RawClient:
    client = RawClient(proxy.url, timeout=timeout)
    client.post("/api/generate", ASKED)
    return client


@pytest.mark.parametrize("toxics", [[], [Slicer(1)], [Slicer(7), Latency(0.01)]], ids=str)
def test_no_byte_is_lost_or_changed(proxy: Proxy, ollama: FakeOllama, toxics: list[Toxic]) -> None:
    ollama.answer("/api/generate", tokens(["Grüße", "!"]))
    with RawClient(ollama.url) as direct:
        direct.post("/api/generate", ASKED)
        expected = direct.read_all()
    proxy.harm(*toxics)

    with ask(proxy) as client:
        assert client.read_all() == expected


@pytest.mark.parametrize("reset", [False, True], ids=["closed", "reset"])
def test_a_cut_relays_exactly_the_given_bytes(proxy: Proxy, reset: bool) -> None:
    proxy.harm(Cut(20, reset=reset))

    with ask(proxy) as client:
        found = b""
        try:
            while piece := client.sock.recv(100):
                found += piece
            was_reset = False
        except ConnectionResetError:
            was_reset = True

    assert len(found) == 20 and was_reset is reset


def test_the_server_sees_the_cut_of_a_request(proxy: Proxy, ollama: FakeOllama) -> None:
    proxy.harm(Cut(4, request=True))

    with ask(proxy) as client:
        assert client.is_closed() and ollama.requests == []


def test_a_stall_keeps_the_connection_and_the_rest(proxy: Proxy) -> None:
    proxy.harm(Stall(20))

    with ask(proxy, timeout=0.3) as client:
        assert len(client.sock.recv(100)) == 20 and not client.is_closed()


def test_the_first_bytes_are_replaced(proxy: Proxy) -> None:
    proxy.harm(Instead(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nno"))

    with ask(proxy) as client:
        assert client.read_all() == b"no" and client.is_closed()


def test_latency_and_bandwidth_delay_bytes(proxy: Proxy) -> None:
    proxy.harm(Latency(0.2), Bandwidth(4000))
    began = time.monotonic()

    with ask(proxy) as client:
        size = len(client.read_all())

    assert time.monotonic() - began > 0.2 + size / 4000


def test_a_proxy_that_is_down_refuses_connections_until_it_is_up(proxy: Proxy) -> None:
    proxy.down()
    with pytest.raises(ConnectionRefusedError):
        ask(proxy)

    proxy.heal()
    with ask(proxy) as client:
        assert client.read_head().status == 200


def test_a_half_open_connection_hides_a_disconnect(proxy: Proxy, ollama: FakeOllama) -> None:
    ollama.answer("/api/generate", Sleep(0.5), tokens("a"))
    proxy.harm(HalfOpen(request=True))

    ask(proxy).close()

    [asked] = ollama.wait_for(1)
    assert not asked.left.wait(0.3)


def test_all_connections_can_be_cut_at_once(proxy: Proxy, ollama: FakeOllama) -> None:
    ollama.answer("/api/generate", tokens("a", done=False), Sleep(30))
    clients = [ask(proxy) for _ in range(3)]
    for client in clients:
        client.read_line()

    proxy.cut()

    for client in clients:
        with pytest.raises((Truncated, ConnectionError)):
            client.read_line()
