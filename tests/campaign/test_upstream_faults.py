"""The model server dies, lies, dribbles and bursts: no answer looks complete that is not, and the
bill stays right. The numbers A1 to A25 are those of the promises page.

A26, traffic that moves to a second model server, has no test: the gateway knows one.
A14, A16 and A20 name nothing.
"""

import gzip
import http.client
import json
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from billing.models import Hold, TokenUsage
from tests.campaign.conftest import (
    House,
    Seen,
    ask,
    books_balance,
    figure,
    looks_complete,
    percentile,
    resident_mb,
    the_row,
)
from tests.conftest import Caller, new_caller, set_price
from tests.fakes.ollama import FakeOllama
from tests.fakes.proxy import Cut, Instead, Slicer
from tests.fakes.script import (
    Close,
    Line,
    Raw,
    Reset,
    Sleep,
    Stall,
    Status,
    Wire,
    dribble,
    error_line,
    rendered,
    reply,
    slices,
    tokens,
)
from tests.flow.conftest import eventually

GENERATE = "/api/generate"
FIRST_LINE, SILENCE, TOTAL = 3.0, 2.0, 5.0
# How late a passed deadline may be seen by a client on a busy machine.
LATE = 1.5
GOOD_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\n"


@pytest.fixture
def key(house: House) -> str:
    set_price("llama3", "0.002", "0.004")
    return new_caller("Alice").secret


def costs_nothing(*outcomes: str) -> bool:
    row = the_row()
    return (row.billed, row.cost) == (False, 0) and row.outcome in outcomes


def is_error(seen: Seen, status: int, code: str) -> bool:
    return (seen.status, seen.error["code"], seen.looks_complete) == (status, code, False)


def is_broken_off(seen: Seen, code: str) -> bool:
    """Tell whether a stream that had begun ended with an error in the band."""
    return is_error(seen, 200, code) and seen.ended_properly


# --- Before the first line ----------------------------------------------------------------------


def test_a1_a_model_server_that_is_down_is_a_quick_503(house: House, key: str) -> None:
    house.proxy.down()

    found = [ask(house, key) for _ in range(50)]

    times = sorted(seen.seconds for seen in found)
    p50, p99 = percentile(times, 50), percentile(times, 99)
    figure(f"time to 503 when refused: p50 {p50 * 1000:.0f} ms, p99 {p99 * 1000:.0f} ms")
    assert all(is_error(seen, 503, "upstream_down") for seen in found)
    assert all(int(seen.headers["retry-after"]) > 0 for seen in found)
    assert p50 < 0.2 and p99 < 1
    assert TokenUsage.objects.filter(billed=False, outcome="upstream_refused").count() == 50


def test_a2_silence_is_a_504_at_the_first_lines_deadline(house: House, key: str) -> None:
    house.ollama.answer(GENERATE, Stall())

    seen = ask(house, key)

    assert is_error(seen, 504, "upstream_stalled") and seen.seconds < FIRST_LINE + LATE
    assert house.ollama.requests[0].left.wait(2), "the upstream connection was not closed"
    assert costs_nothing("upstream_stalled")


def test_a3_a_dribbled_status_line_is_cut_at_the_same_deadline(house: House, key: str) -> None:
    house.ollama.answer(GENERATE, dribble(GOOD_HEAD, pause=0.3))

    seen = ask(house, key)

    assert is_error(seen, 504, "upstream_stalled") and seen.seconds < FIRST_LINE + LATE
    assert costs_nothing("upstream_stalled")


@pytest.mark.parametrize(
    "body",
    [tokens(["x"] * 100, pause=0.3), slices(b'{"response": "' + b"x" * 100, 1, pause=0.3)],
    ids=["lines", "bytes of one line"],
)
def test_a4_a_dribble_without_end_is_cut_at_a_deadline(
    house: House, key: str, body: list[Any]
) -> None:
    house.ollama.answer(GENERATE, tokens("a", done=False), body)

    seen = ask(house, key)

    assert is_broken_off(seen, "answer_too_long") and seen.seconds < TOTAL + LATE
    assert (the_row().outcome, the_row().billed) == ("answer_too_long", True)
    assert the_row().completion_tokens >= 1


REFUSALS = {
    "500": (reply({"error": "CUDA error at /srv/models"}, 500), 502),
    "500, not JSON": (reply("panic: /srv/models", 500), 502),
    "400": (reply({"error": "bad option /srv/models"}, 400), 502),
    "404": (reply({"error": "model 'llama3' not found, see /srv/models"}, 404), 404),
    "502": (reply("<html>/srv/models</html>", 502), 502),
    "204": ([Status(204)], 502),
    "299": (reply("/srv/models", 299), 502),
}


@pytest.mark.parametrize(("refusal", "status"), REFUSALS.values(), ids=REFUSALS)
def test_a5_a_refusal_keeps_a_status_and_tells_nothing(
    house: House, key: str, refusal: list[Any], status: int
) -> None:
    house.ollama.answer(GENERATE, refusal)

    seen = ask(house, key)

    assert seen.status in (status, 400) and "/srv" not in str(seen.error)
    assert costs_nothing("upstream_refused", "upstream_broke")


def test_a6_a_busy_model_server_is_not_asked_again(house: House, key: str) -> None:
    house.ollama.answer(GENERATE, reply({"error": "server busy, please try again"}, 503))

    seen = ask(house, key)

    assert is_error(seen, 503, "upstream_busy") and int(seen.headers["retry-after"]) > 0
    assert len(house.ollama.requests) == 1
    assert costs_nothing("upstream_refused")


# --- In mid-stream ------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
@pytest.mark.parametrize("lines", range(6))
def test_a7_an_error_line_ends_an_answer_as_failed(
    house: House, key: str, lines: int, stream: bool
) -> None:
    house.ollama.answer(GENERATE, tokens("x" * lines, done=False), error_line("out of memory"))

    seen = ask(house, key, stream=stream)

    assert seen.status == (200 if stream and lines else 502) and seen.error
    assert not seen.looks_complete and costs_nothing("upstream_broke", "upstream_refused")


@pytest.mark.parametrize("reset", [False, True], ids=["closed", "reset"])
@pytest.mark.parametrize("at", [0, 10, 200, 420, 600])
def test_a8_a_cut_on_the_wire_never_looks_complete(
    house: House, key: str, at: int, reset: bool
) -> None:
    house.ollama.answer(GENERATE, tokens("abcdefgh", pause=0.01))
    house.proxy.harm(Cut(at, reset=reset))

    seen = ask(house, key)

    assert seen.error and not seen.looks_complete
    assert costs_nothing("upstream_broke", "upstream_refused")


BROKEN_ENDS = {
    "A9 the end between two lines": [Close()],
    "A9 a proper end without a last line": [],
    "A10 half a last line": [Raw(b'{"done":tr'), Close()],
    "A10 half a last line, properly ended": [Raw(b'{"done":tr')],
    "A13 not JSON": [Line(b"<html>")],
    "A13 not UTF-8": [Line(b'{"response":"\xc3\x28","done":true}')],
    "A13 NaN": [Line(b'{"response":NaN}')],
    "A13 nested without end": [Line(b'{"response":' + b"[" * 100_000)],
    "A13 done is text": [Line(b'{"response":"","done":"true"}'), Close()],
    "a chunk size that is none": [Wire(b"zz\r\n\r\n")],
    "a chunk longer than what comes": [Wire(b"ffff\r\nx")],
}


@pytest.mark.parametrize("ending", BROKEN_ENDS.values(), ids=BROKEN_ENDS)
@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
def test_a9_a10_a13_a_stream_without_its_last_line_is_broken(
    house: House, key: str, ending: list[Any], stream: bool
) -> None:
    house.ollama.answer(GENERATE, tokens("ab", done=False), ending)

    seen = ask(house, key, stream=stream)

    assert seen.error["code"] == "upstream_broke" and not seen.looks_complete
    assert b"<html>" not in seen.body and b"\xc3" not in seen.body
    assert costs_nothing("upstream_broke")


def test_a11_a_last_line_without_its_newline_is_complete(house: House, key: str) -> None:
    last = json.dumps({"response": "", "done": True, "prompt_eval_count": 3, "eval_count": 1})
    house.ollama.answer(GENERATE, tokens("a", done=False), Raw(last.encode()))

    seen = ask(house, key)

    assert seen.looks_complete
    assert (the_row().outcome, the_row().billed, the_row().prompt_tokens) == ("complete", True, 3)


ENDLESS = [Raw(b"x" * 65_536)] * 480  # 30 MB


@pytest.mark.parametrize("begun", ["", "a"], ids=["first line", "in mid-stream"])
def test_a12_a_line_of_ten_megabytes_is_cut_and_memory_stays_flat(
    house: House, key: str, begun: str
) -> None:
    house.ollama.answer(GENERATE, tokens(begun, done=False), ENDLESS)
    ask(house, key)
    before = memory(house)

    found = in_parallel(4, lambda: ask(house, key))

    assert all(seen.error["code"] == "upstream_broke" for seen in found)
    assert not any(seen.looks_complete for seen in found)
    assert house.ollama.requests[-1].left.wait(2), "the rest of the line was waited for"
    figure(f"four lines of 30 MB at once: {memory(house) - before:+.1f} MB resident")
    assert memory(house) - before < 40


def memory(house: House) -> float:
    return max(map(resident_mb, house.server.worker_pids()))


def in_parallel(times: int, do: Any) -> list[Any]:
    found: list[Any] = []
    threads = [threading.Thread(target=lambda: found.append(do())) for _ in range(times)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(found) == times
    return found


@pytest.mark.parametrize("more", [tokens("b", count=900), [Line(b"<html>")], [Sleep(1), Reset()]])
def test_a15_what_follows_the_last_line_is_dropped(house: House, key: str, more: list[Any]) -> None:
    house.ollama.answer(GENERATE, tokens("ab"), more)

    seen = ask(house, key)

    assert seen.looks_complete and len(seen.lines) == 3 and seen.seconds < 0.9
    assert (the_row().outcome, the_row().completion_tokens) == ("complete", 2)


# --- HTTP that is none --------------------------------------------------------------------------

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
def test_a17_broken_http_is_a_502(house: House, key: str, wire: bytes) -> None:
    house.proxy.harm(Instead(wire))

    seen = ask(house, key)

    assert is_error(seen, 502, "upstream_broke")
    assert costs_nothing("upstream_broke", "upstream_refused")
    assert len(house.ollama.requests) == 1


def test_a17_where_length_and_chunks_disagree_the_chunks_count(house: House, key: str) -> None:
    chunks = b"%x\r\n%b\r\n0\r\n\r\n" % (len(DONE), DONE)
    house.proxy.harm(Instead(CHUNKED + b"Content-Length: 5\r\n\r\n" + chunks))

    assert ask(house, key).looks_complete and the_row().outcome == "complete"


BOMB = gzip.compress(b"0" * 50_000_000)
SIX_TIMES = ", ".join(["gzip"] * 6)


@pytest.mark.parametrize("coding", ["gzip", SIX_TIMES, "br", "identity"], ids=lambda c: c[:10])
def test_a18_a_compressed_answer_is_refused_and_not_unpacked(
    house: House, key: str, coding: str
) -> None:
    house.ollama.answer(GENERATE, Status(200, {"Content-Encoding": coding}), Raw(BOMB))
    ask(house, key)
    before = memory(house)

    seen = ask(house, key)

    assert is_error(seen, 502, "upstream_broke") and memory(house) - before < 20


def test_a19_a_redirect_is_not_followed(house: House, key: str) -> None:
    with FakeOllama() as elsewhere:
        location = {"Location": elsewhere.url + GENERATE, "Content-Length": "0"}
        for status in (301, 302, 303, 307, 308):
            house.ollama.answer(GENERATE, Status(status, location))
            assert is_error(ask(house, key), 502, "upstream_error")
        assert elsewhere.requests == []


@pytest.mark.parametrize("ending", [Reset(), Close()], ids=["reset", "closed"])
def test_a21_a_request_that_was_sent_is_never_sent_again(
    house: House, key: str, ending: Any
) -> None:
    house.ollama.answer(GENERATE, ending)

    seen = ask(house, key)

    assert is_error(seen, 502, "upstream_broke") and len(house.ollama.requests) == 1
    assert costs_nothing("upstream_broke", "upstream_refused")


def test_a22_a_model_that_loads_longer_than_a_lease_lasts_is_waited_for(
    house: House, key: str
) -> None:
    house.ollama.answer(GENERATE, Sleep(2.3), tokens("ab"))

    seen = ask(house, key)

    assert seen.looks_complete and seen.seconds > 2.3
    assert the_row().outcome == "complete"


@pytest.mark.parametrize("pause", [0.05, 60], ids=["endless", "one"])
def test_a23_a_continue_that_nothing_follows_is_cut_at_the_deadline(
    house: House, key: str, pause: float
) -> None:
    continues = dribble(b"HTTP/1.1 100 Continue\r\n\r\n" * 100, size=25, pause=pause)
    house.ollama.answer(GENERATE, continues)

    seen = ask(house, key)

    assert seen.status in (502, 504) and seen.seconds < FIRST_LINE + LATE
    assert costs_nothing("upstream_stalled", "upstream_broke")


def test_a24_no_header_of_the_model_server_reaches_the_client(house: House, key: str) -> None:
    theirs = {
        "Set-Cookie": "a=canary",
        "Server": "canary",
        "Access-Control-Allow-Origin": "canary",
        "Keep-Alive": "timeout=canary",
        "X-Request-Id": "canary",
        "Connection": "X-Canary, close",
        "X-Canary": "canary",
    }
    house.ollama.answer(GENERATE, Status(200, theirs), tokens("ab"))

    seen = ask(house, key)

    assert seen.looks_complete and "canary" not in str(seen.headers).lower()


def test_a25_a_model_server_restarted_under_load_is_found_again(house: House, key: str) -> None:
    house.ollama.answer(GENERATE, tokens(["x"] * 300, pause=0.02))
    cut: list[Seen] = []
    readers = [threading.Thread(target=lambda: cut.append(ask(house, key))) for _ in range(12)]
    for reader in readers:
        reader.start()
    house.ollama.wait_for(12)
    time.sleep(0.3)

    house.proxy.down()
    house.proxy.cut(reset=True)
    refused = ask(house, key)
    for reader in readers:
        reader.join(10)
    back_at = time.monotonic()
    house.ollama.answer(GENERATE, tokens("ab"))
    house.proxy.up()
    eventually(lambda: ask(house, key).looks_complete)

    assert is_error(refused, 503, "upstream_down") and refused.seconds < 1
    assert time.monotonic() - back_at < 5
    assert len(cut) == 12 and not any(seen.looks_complete for seen in cut)
    assert all(seen.error["code"] == "upstream_broke" for seen in cut)


@pytest.mark.parametrize("size", [1, 7, 64])
def test_what_the_model_server_says_arrives_however_it_is_sliced(
    house: House, key: str, size: int
) -> None:
    pieces = ["Grüße", " \U0001f600", "\r", " \u2028", "\\n", '"']
    house.ollama.answer(GENERATE, tokens(pieces))
    house.proxy.harm(Slicer(size))

    seen = ask(house, key)

    assert [json.loads(line)["response"] for line in seen.body.split(b"\n")[:-2]] == pieces
    assert seen.looks_complete


# --- A8: the connection ends at every byte of one reply, for every family of clients ------------

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


@pytest.fixture
def bare(settings: Any) -> Iterator["BareUpstream"]:
    """A model server that answers every request with the same bytes and closes."""
    with BareUpstream() as upstream:
        settings.OLLAMA_BASE = f"http://127.0.0.1:{upstream.port}"
        yield upstream


class BareUpstream:
    """As little as a server can be, so that hundreds of cuts take seconds."""

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
                reader.readline()
                length = http.client.parse_headers(reader)["Content-Length"]
                reader.read(int(length))
                sock.sendall(self.answer)


@pytest.mark.parametrize(("path", "fields"), FAMILIES.values(), ids=FAMILIES)
def test_a8_no_cut_at_any_byte_looks_complete(
    bare: BareUpstream, alice: Caller, priced: Any, path: str, fields: dict[str, Any]
) -> None:
    upstream = "/api/generate" if "generate" in path else "/api/chat"
    wire = rendered(tokens(["Hel", "lo"], path=upstream))
    # From this byte on the last line is whole, and so is the answer.
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
