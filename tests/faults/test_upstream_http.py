"""The model server breaks the rules of HTTP, loads a model for long, or restarts. Continues
test_upstream_faults.py.
"""

import gzip
import threading
import time
import zlib
from typing import Any

import pytest

from tests.fakes.ollama import FakeOllama
from tests.fakes.proxy import Instead
from tests.fakes.script import Close, Raw, Reset, Sleep, Status, dribble, tokens
from tests.faults.conftest import (
    BOTH_WAYS,
    RunningGateway,
    Seen,
    ask,
    costs_nothing,
    growing_less_than,
    is_broken_off,
    is_error,
    the_row,
)
from tests.harness.gateway import eventually

GENERATE = "/api/generate"
FIRST_LINE = 3.0
# How early and how late a passed deadline may be seen by a client on a busy machine.
EARLY, LATE = 0.3, 8.0
GOOD_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\n"
pytestmark = BOTH_WAYS

DONE = b'{"response": "", "done": true, "prompt_eval_count": 1, "eval_count": 1}\n'
CHUNKED = GOOD_HEAD + b"Transfer-Encoding: chunked\r\n"

WIRES = {
    "a bad chunk size": CHUNKED + b"\r\nzz\r\n" + DONE,
    "a chunk size of a megabyte": CHUNKED + b"\r\n" + b"1" * 1_000_000 + b"\r\n" + DONE,
    "200 headers": GOOD_HEAD + b"X: y\r\n" * 200 + b"\r\n" + DONE,
    "a header of 70 KB": GOOD_HEAD + b"X: " + b"y" * 70_000 + b"\r\n\r\n" + DONE,
    "no status line": b"hello\r\n\r\n" + DONE,
    "a status that is no number": b"HTTP/1.1 abc OK\r\n\r\n" + DONE,
    "another protocol": b"SSH-2.0-OpenSSH_9.2\r\n",
    "a length that is no number, and nothing": GOOD_HEAD + b"Content-Length: x\r\n\r\n",
    "a length longer than the body": GOOD_HEAD + b"Content-Length: 999\r\n\r\n" + DONE[:40],
    "nothing": b"",
}


@pytest.mark.parametrize("wire", WIRES.values(), ids=WIRES)
def test_broken_http_is_a_502(gateway: RunningGateway, key: str, wire: bytes) -> None:
    gateway.proxy.harm(Instead(wire))

    seen = ask(gateway, key)

    assert is_error(seen, 502, "upstream_broke")
    assert costs_nothing("upstream_broke", "upstream_refused")
    assert len(gateway.ollama.requests) == 1


def test_chunked_encoding_wins_over_a_content_length(gateway: RunningGateway, key: str) -> None:
    chunks = b"%x\r\n%b\r\n0\r\n\r\n" % (len(DONE), DONE)
    gateway.proxy.harm(Instead(CHUNKED + b"Content-Length: 5\r\n\r\n" + chunks))

    assert ask(gateway, key).looks_complete and the_row().outcome == "complete"


BOMB = gzip.compress(b"0" * 50_000_000)
SIX_TIMES = ", ".join(["gzip"] * 6)


PACKED = {
    "a whole answer": ("gzip", gzip.compress(DONE)),
    "a whole answer by another name": ("x-gzip", gzip.compress(DONE)),
    "a whole answer in another way": ("deflate", zlib.compress(DONE)),
    "a bomb": ("gzip", BOMB),
    "a bomb by six names": (SIX_TIMES, BOMB),
    "a bomb in no packing": ("identity", BOMB),
    "what is not packed so": ("br", BOMB),
}


@pytest.mark.parametrize(("coding", "data"), PACKED.values(), ids=PACKED)
def test_a_compressed_response_is_refused_and_not_unpacked(
    gateway: RunningGateway, key: str, coding: str, data: bytes
) -> None:
    gateway.ollama.answer(GENERATE, Status(200, {"Content-Encoding": coding}), Raw(data))
    ask(gateway, key)

    with growing_less_than(20, gateway, "a compressed answer"):
        seen = ask(gateway, key)

    assert is_error(seen, 502, "upstream_broke")


def test_a_redirect_is_not_followed(gateway: RunningGateway, key: str) -> None:
    with FakeOllama() as elsewhere:
        location = {"Location": elsewhere.url + GENERATE, "Content-Length": "0"}
        for status in (301, 302, 303, 307, 308):
            gateway.ollama.answer(GENERATE, Status(status, location))
            assert is_error(ask(gateway, key), 502, "upstream_error")
        assert elsewhere.requests == []


@pytest.mark.parametrize("ending", [Reset(), Close()], ids=["reset", "closed"])
def test_a_request_that_was_sent_is_never_sent_again(
    gateway: RunningGateway, key: str, ending: Any
) -> None:
    gateway.ollama.answer(GENERATE, ending)

    seen = ask(gateway, key)

    assert is_error(seen, 502, "upstream_broke") and len(gateway.ollama.requests) == 1
    assert costs_nothing("upstream_broke", "upstream_refused")


def test_a_model_that_loads_longer_than_a_lease_lasts_is_waited_for(
    gateway: RunningGateway, key: str
) -> None:
    gateway.ollama.answer(GENERATE, Sleep(2.3), tokens("ab"))

    seen = ask(gateway, key)

    assert seen.looks_complete and seen.seconds > 2.3
    assert the_row().outcome == "complete"


@pytest.mark.parametrize("pause", [0.05, 60], ids=["endless", "one"])
def test_a_100_continue_without_a_response_is_cut_at_the_deadline(
    gateway: RunningGateway, key: str, pause: float
) -> None:
    gateway.ollama.answer(GENERATE, interim("100 Continue", pause))

    seen = ask(gateway, key)

    assert is_error(seen, 504, "upstream_stalled")
    assert FIRST_LINE - EARLY < seen.seconds < FIRST_LINE + LATE
    assert costs_nothing("upstream_stalled")


@pytest.mark.parametrize("status", ["102 Processing", "103 Early Hints", "199 Whatever"])
def test_other_interim_responses_are_refused(
    gateway: RunningGateway, key: str, status: str
) -> None:
    gateway.ollama.answer(GENERATE, interim(status, 0.05))

    seen = ask(gateway, key)

    assert is_error(seen, 502, "upstream_error") and seen.seconds < FIRST_LINE + LATE
    assert gateway.ollama.requests[0].left.wait(10), "the upstream connection was not closed"
    assert costs_nothing("upstream_refused", "upstream_broke")


def interim(status: str, pause: float) -> list[Any]:
    """Many interim responses that each announce another, for longer than every deadline."""
    head = f"HTTP/1.1 {status}\r\n\r\n".encode()
    return dribble(head * 200, size=len(head), pause=pause)


def test_no_header_of_the_model_server_reaches_the_client(
    gateway: RunningGateway, key: str
) -> None:
    theirs = {
        "Set-Cookie": "a=canary",
        "Server": "canary",
        "Access-Control-Allow-Origin": "canary",
        "Keep-Alive": "timeout=canary",
        "X-Request-Id": "canary",
        "Connection": "X-Canary, close",
        "X-Canary": "canary",
    }
    gateway.ollama.answer(GENERATE, Status(200, theirs), tokens("ab"))

    seen = ask(gateway, key)

    assert seen.looks_complete and "canary" not in str(seen.headers).lower()


def test_a_model_server_restarted_under_load_is_reached_again(
    gateway: RunningGateway, key: str
) -> None:
    gateway.ollama.answer(GENERATE, tokens(["x"] * 300, pause=0.02))
    cut: list[Seen] = []
    readers = [threading.Thread(target=lambda: cut.append(ask(gateway, key))) for _ in range(12)]
    for reader in readers:
        reader.start()
    gateway.ollama.wait_for(12)
    time.sleep(0.3)

    gateway.proxy.down()
    gateway.proxy.cut(reset=True)
    refused = [ask(gateway, key) for _ in range(5)]
    for reader in readers:
        reader.join(10)
    gateway.ollama.answer(GENERATE, tokens("ab"))
    gateway.proxy.up()
    eventually(lambda: ask(gateway, key).looks_complete)

    assert all(is_error(seen, 503, "upstream_down") for seen in refused)
    assert all(int(seen.headers["retry-after"]) > 0 for seen in refused)
    assert max(seen.seconds for seen in refused) < LATE
    assert len(cut) == 12 and not any(seen.looks_complete for seen in cut)
    assert all(is_broken_off(seen, "upstream_broke") for seen in cut)
