"""However the model server's bytes are cut, the same text arrives, and all of it."""

import json
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as examples
from hypothesis import strategies as st

from gateway.errors import ClientDisconnected, UpstreamBroke
from gateway.upstream.cancellation import Cancellation
from gateway.upstream.client import ResponseLines
from tests.fakes.ollama import FakeOllama
from tests.fakes.script import Line, Raw, slices, tokens
from tests.harness.callers import Caller

pytestmark = pytest.mark.usefixtures("priced")


class Pieces:
    """A response whose reads return exactly these pieces."""

    chunked = True

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self.raw = self
        self.pieces = pieces

    def read1(self, amount: int, decode_content: bool) -> bytes:
        return next(self.pieces, b"")

    def close(self) -> None:
        pass


def answer(*pieces: bytes, cancellation: Cancellation | None = None) -> ResponseLines:
    return ResponseLines(Pieces(iter(pieces)), cancellation or Cancellation(None))  # type: ignore[arg-type]


def lines_of(*pieces: bytes) -> list[bytes]:
    return list(answer(*pieces).lines())


def cut(data: bytes, at: list[int]) -> list[bytes]:
    """The data in pieces that end at these places; none is empty, as a read's never is."""
    marks = sorted({0, len(data), *(place % (len(data) + 1) for place in at)})
    return [data[start:end] for start, end in pairwise(marks)]


# --- The splitter ---------------------------------------------------------------------------------


def test_lines_are_cut_at_the_byte_newline_only() -> None:
    odd = "a\u0085b\u2028c\u2029d\x0be\x0cf\x1cg\rh".encode()

    assert lines_of(odd + b"\n" + odd + b"\n") == [odd, odd]


def test_the_last_line_may_lack_its_newline() -> None:
    assert lines_of(b"one\ntw", b"o") == [b"one", b"two"]


@pytest.mark.parametrize("blank", [b"\n", b"\r\n", b" \n\n"])
def test_blank_lines_are_skipped(blank: bytes) -> None:
    assert lines_of(b"one\n" + blank + b"two\n" + blank) == [b"one", b"two"]


def test_white_space_after_the_last_newline_is_no_line() -> None:
    assert lines_of(b"one\n \r") == [b"one"]


def test_an_empty_answer_has_no_lines() -> None:
    assert lines_of() == []


def test_many_lines_come_in_one_piece() -> None:
    assert lines_of(b"x\n" * 10_000) == [b"x"] * 10_000


def test_one_line_comes_in_many_pieces() -> None:
    assert lines_of(*[b"x"] * 10_000, b"\n") == [b"x" * 10_000]


def limited(*pieces: bytes) -> list[bytes]:
    """Return the lines of a response whose lines may have 1,000 bytes."""
    response: Any = Pieces(iter(pieces))
    return list(ResponseLines(response, Cancellation(None), longest=1000).lines())


def test_a_line_that_never_ends_breaks_the_response() -> None:
    assert limited(b"x" * 1000 + b"\n") == [b"x" * 1000]
    with pytest.raises(UpstreamBroke):
        limited(b"x" * 999, b"x" * 2, b"\n")


@pytest.mark.parametrize("rest", [b"", b" \r", b'{"done":tr'], ids=["none", "blank", "half"])
def test_an_end_after_a_break_off_is_the_break_off(rest: bytes) -> None:
    """Without length or chunks a connection that we shut down reads like one that ended."""
    cancellation = Cancellation(None)
    lines = answer(b"one\n", rest, cancellation=cancellation).lines()
    assert next(lines) == b"one"

    cancellation.cancel(ClientDisconnected)

    with pytest.raises(ClientDisconnected):
        next(lines)


def test_an_answer_that_was_whole_before_its_break_off_is_whole() -> None:
    cancellation = Cancellation(None)
    cancellation.cancel(ClientDisconnected)

    assert next(answer(b'{"done":true}\n', cancellation=cancellation).lines()) == b'{"done":true}'
    assert next(answer(b'{"done":true}', cancellation=cancellation).lines()) == b'{"done":true}'


@examples(deadline=None)
@given(
    st.binary(max_size=200).map(lambda data: data.replace(b"x", b"\n")), st.lists(st.integers(0))
)
def test_cutting_elsewhere_makes_no_other_lines(data: bytes, at: list[int]) -> None:
    whole = lines_of(*cut(data, []))

    assert lines_of(*cut(data, at)) == whole == lines_of(*cut(data, list(range(len(data)))))


# --- Through real sockets -------------------------------------------------------------------------

ODD_TEXT = [
    "plain",
    "naïve “quotes” – dash",
    "next\u0085line \u2028 \u2029 \x0b\x0c\x1c\x1d",
    "😀 👩‍👩‍👧 🇩🇪",
    "lone \ud83d surrogate \udc00",
    "nul \x00 and escape \x1b[31m",
    '"quotes" \\ and \\u0041',
    "\r\n\r\ndata: [DONE]\n\n",
    "\ufeff\u202e",
    '{"done":true}\n',
]


def streamed(alice: Caller) -> tuple[bytes, str]:
    answer = alice.post("/api/generate", model="llama3", prompt="hi")
    body = b"".join(answer)
    lines = [json.loads(line) for line in body.split(b"\n")[:-1]]
    assert lines[-1]["done"] is True and "usage" in lines[-1]
    return body, "".join(line["response"] for line in lines)


def test_text_out_is_text_in(alice: Caller, ollama: FakeOllama) -> None:
    ollama.answer("/api/generate", tokens(ODD_TEXT))

    assert streamed(alice)[1] == "".join(ODD_TEXT)


def test_bare_characters_out_are_text_in(alice: Caller, ollama: FakeOllama) -> None:
    text = "".join(ODD_TEXT).replace("\ud83d", "").replace("\udc00", "")
    native = {"model": "llama3", "response": text, "done": False}
    line = json.dumps(native, ensure_ascii=False).encode()
    ollama.answer("/api/generate", Line(line), tokens([], count=3))

    assert streamed(alice)[1] == text


def test_no_client_sees_a_line_break_that_is_none(alice: Caller, ollama: FakeOllama) -> None:
    ollama.answer("/api/generate", tokens(ODD_TEXT))

    body = streamed(alice)[0]

    assert body.isascii() and len(body.decode().splitlines()) == body.count(b"\n")


def test_a_whole_answer_is_the_streamed_text(alice: Caller, ollama: FakeOllama) -> None:
    ollama.answer("/api/generate", tokens(ODD_TEXT))

    answer = alice.post("/generate", model="llama3", prompt="hi")

    assert answer.json()["response"] == streamed(alice)[1] == "".join(ODD_TEXT)


def test_an_emoji_cut_in_its_middle_arrives_whole(alice: Caller, ollama: FakeOllama) -> None:
    line = json.dumps({"response": "😀é", "done": False}, ensure_ascii=False).encode() + b"\n"
    ollama.answer("/api/generate", slices(line, 1), tokens([], count=1))

    assert streamed(alice)[1] == "😀é"


def test_a_line_of_a_megabyte_arrives(alice: Caller, ollama: FakeOllama) -> None:
    text = "0123456789" * 100_000
    ollama.answer("/api/generate", tokens([text]))

    assert streamed(alice)[1] == text


def test_a_final_line_without_newline_counts(alice: Caller, ollama: FakeOllama) -> None:
    *steps, final = tokens("ab")
    assert isinstance(final, Line)
    ollama.answer("/api/generate", steps, Raw(json.dumps(final.content).encode()))

    assert streamed(alice)[1] == "ab"


ANSWER = b"".join(
    json.dumps(step.content, ensure_ascii=False).encode() + b"\n"
    for step in tokens(["a", "é😀", "\u2028", "end"])
    if isinstance(step, Line)
)


@examples(
    max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None
)
@given(at=st.lists(st.integers(0, len(ANSWER)), max_size=12))
def test_any_chunking_of_an_answer_gives_the_client_the_same_bytes(
    alice: Caller, ollama: FakeOllama, at: list[int]
) -> None:
    ollama.answer("/api/generate", Raw(ANSWER), times=1)
    ollama.answer("/api/generate", [Raw(piece) for piece in cut(ANSWER, at)], times=1)

    assert streamed(alice) == streamed(alice)


def test_numbers_of_an_embedding_arrive_to_the_last_digit(
    alice: Caller, ollama: FakeOllama
) -> None:
    vector = [0.1, -1e-12, 1.7976931348623157e308, 5e-324, 0.30000000000000004, 0, -0.0]
    native: dict[str, Any] = {"model": "m", "embeddings": [vector], "prompt_eval_count": 1}
    ollama.answer("/api/embed", Line(native))

    answer = alice.post("/embedding", model="nomic-embed-text", input="hi")

    assert answer.json()["embedding"] == vector


def test_what_the_client_wrote_is_what_the_model_server_reads(
    alice: Caller, ollama: FakeOllama
) -> None:
    asked = "".join(ODD_TEXT)

    assert alice.post("/generate", model="llama3", prompt=asked).status_code == 200
    assert ollama.requests[-1].json["prompt"] == asked
