"""OpenAI's routes over HTTP."""

import json
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as examples
from hypothesis import strategies as st

from billing.models import Hold, TokenUsage
from gateway.dialects.openai.dialect import CHAT, COMPLETIONS, EMBEDDINGS, RESPONSES, OpenAIDialect
from gateway.errors import BadRequest
from gateway.metering import Operation
from gateway.upstream.protocol import read_chunk
from tests.fakes.ollama import FakeOllama
from tests.fakes.script import Close, Line, Raw, Sleep, slices, tokens
from tests.harness.callers import Caller
from tests.harness.openai import (
    ASKED,
    HELLO,
    OPERATIONS,
    TEXT,
    WRITERS,
    each_writer,
    end,
    events,
    is_complete,
    pieces_of,
    streamed,
    upstream,
)

# --- Through the gateway --------------------------------------------------------------------------

PATHS = {
    CHAT: "/v1/chat/completions",
    COMPLETIONS: "/v1/completions",
    EMBEDDINGS: "/v1/embeddings",
    RESPONSES: "/v1/responses",
}
NATIVE = {CHAT: "/api/chat", COMPLETIONS: "/api/generate", RESPONSES: "/api/chat"}
many = examples(
    deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def ask(caller: Caller, dialect: OpenAIDialect, **fields: Any) -> bytes:
    """Ask for a stream; return its bytes."""
    body = {"model": "llama3", **ASKED[dialect], "stream": True, **fields}
    response = caller.post(PATHS[dialect], **body)
    return b"".join(response.streaming_content) if response.streaming else response.content


def without_ids(stream: bytes) -> list[Any]:
    """Return the events, without what differs from request to request."""
    names = ("id", "item_id", "created", "created_at", "completed_at", "call_id")

    def strip(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: strip(inner) for name, inner in value.items() if name not in names}
        return [strip(inner) for inner in value] if isinstance(value, list) else value

    return [strip(event) for event in events(stream)]


def lines_of(dialect: OpenAIDialect, pieces: list[str], *, ascii_only: bool = True) -> bytes:
    """Return the bytes of an answer of the model server, as Go or as anybody else writes them."""
    script = tokens(pieces, path=NATIVE[dialect])
    objects = [step.content for step in script if isinstance(step, Line)]
    written = [json.dumps(one, ensure_ascii=ascii_only) for one in objects]
    return "".join(f"{line}\n" for line in written).encode("utf-8", "surrogatepass")


ODD = ["plain", "", "😀", "\x85", "\u2028\u2029", "\ud83d", "\r\n\n\n", "data: [DONE]\n\n", "é"]


@each_writer
@pytest.mark.parametrize("ascii_only", [True, False], ids=["escaped", "bare"])
@pytest.mark.usefixtures("priced")
def test_however_the_bytes_are_cut_the_client_reads_the_same(
    alice: Caller, ollama: FakeOllama, dialect: OpenAIDialect, ascii_only: bool
) -> None:
    answer = lines_of(dialect, ODD, ascii_only=ascii_only)
    found = []
    for size in (1, 7, 64, len(answer)):
        ollama.answer(NATIVE[dialect], slices(answer, size))
        found.append(without_ids(ask(alice, dialect)))

    assert pieces_of(dialect, found[0]) == "".join(ODD)
    assert all(one == found[0] for one in found)


@each_writer
@pytest.mark.usefixtures("priced")
def test_text_of_a_megabyte_comes_out_as_it_went_in(
    alice: Caller, ollama: FakeOllama, dialect: OpenAIDialect
) -> None:
    text = "😀\x85\u2028" * 120_000
    ollama.answer(NATIVE[dialect], Raw(lines_of(dialect, [text], ascii_only=False)))

    assert pieces_of(dialect, events(ask(alice, dialect))) == text


@pytest.mark.usefixtures("priced")
def test_text_goes_to_the_model_as_the_client_wrote_it(alice: Caller, ollama: FakeOllama) -> None:
    text = "".join(ODD)

    for dialect, name in {COMPLETIONS: "prompt", RESPONSES: "input"}.items():
        ask(alice, dialect, **{name: text})
    ask(alice, CHAT, messages=[{"role": "user", "content": text}])

    generate, *chats = [request.json for request in ollama.requests]
    assert generate["prompt"] == text
    assert [chat["messages"][0]["content"] for chat in chats] == [text, text]


@each_writer
@pytest.mark.usefixtures("priced")
def test_an_answer_cut_at_any_byte_never_looks_complete(
    alice: Caller, ollama: FakeOllama, dialect: OpenAIDialect
) -> None:
    answer = lines_of(dialect, ["Hel", "lo"])
    for at in sorted({*range(0, len(answer), 41), len(answer) - 2, len(answer) - 1}):
        ollama.answer(NATIVE[dialect], Raw(answer[:at]), Close())

        stream = ask(alice, dialect)

        assert not is_complete(stream) and b"upstream_broke" in stream, at
    assert not TokenUsage.objects.filter(billed=True).exists()
    ollama.answer(NATIVE[dialect], Raw(answer), Close())
    assert is_complete(ask(alice, dialect))


@each_writer
@pytest.mark.usefixtures("priced")
def test_silence_is_filled_with_comments(
    alice: Caller, ollama: FakeOllama, settings: Any, dialect: OpenAIDialect
) -> None:
    settings.KEEP_ALIVE_SECONDS = 0.05
    pieces = tokens(["Hel", "lo"], path=NATIVE[dialect], pause=0.2)
    ollama.answer(NATIVE[dialect], Sleep(0.2), pieces)

    stream = ask(alice, dialect)

    assert stream.startswith(b": keep-alive\n\n") and stream.count(b": keep-alive\n\n") >= 3
    assert pieces_of(dialect, events(stream)) == "Hello" and is_complete(stream)


@pytest.mark.usefixtures("priced")
def test_the_same_question_costs_the_same_in_every_family(
    alice: Caller, ollama: FakeOllama
) -> None:
    asked = {"model": "llama3", "messages": HELLO}
    questions: list[tuple[str, dict[str, Any]]] = [
        ("/chat", asked),
        ("/api/chat", asked),
        ("/v1/chat/completions", asked),
        ("/v1/responses", {"model": "llama3", "input": "hello there"}),
        ("/v1/completions", {"model": "llama3", "prompt": "hello there"}),
    ]
    costs = set()
    for path, body in questions:
        whole = alice.post(path, **body, stream=False).json()
        costs.add(whole["usage"]["cost"])
        stream = alice.post(path, **body, stream=True)
        assert b"".join(stream.streaming_content)

    kinds = TokenUsage.objects.values_list(
        *["model", "prompt_tokens", "completion_tokens", "cost", "outcome", "count_source"],
        *["billed", "account", "key"],
    )
    assert len(set(kinds)) == 1 and len(kinds) == 2 * len(questions)
    assert costs == {f"{kinds[0][3]:f}"}


@pytest.mark.usefixtures("priced")
def test_an_embedding_costs_the_same_in_every_family(alice: Caller, ollama: FakeOllama) -> None:
    asked = {"model": "nomic-embed-text", "input": ["one two", "three"]}

    costs = {
        alice.post(path, **asked).json()["usage"]["cost"]
        for path in ("/embedding", "/api/embed", "/v1/embeddings")
    }

    assert len(costs) == 1 and TokenUsage.objects.count() == 3


# --- Whatever is sent -----------------------------------------------------------------------------

LEAF = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXT
)
WORDS = st.sampled_from(
    """type role content text user assistant tool function name arguments tool_calls call_id id
    parameters format schema json_schema effort output input_text message function_call url
    function_call_output image_url reasoning""".split()  # noqa: SIM905
)
VALUE = st.recursive(
    LEAF | WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=4),
    max_leaves=8,
)
FIELDS = st.sampled_from(
    """messages input prompt tools tool_choice response_format text reasoning reasoning_effort n
    max_tokens max_completion_tokens max_output_tokens temperature top_p seed stop logprobs
    top_logprobs stream stream_options instructions truncation metadata encoding_format dimensions
    suffix echo functions store include""".split()  # noqa: SIM905
)


@examples(deadline=None, max_examples=300)
@given(st.dictionaries(FIELDS, VALUE, max_size=5))
def test_no_body_does_worse_than_being_refused(fields: dict[str, Any]) -> None:
    for dialect in OPERATIONS:
        with suppress(BadRequest):
            # What goes on must be JSON, as the library that sends it writes it.
            assert json.dumps(upstream(dialect, **fields), allow_nan=False)


@many
@given(st.sampled_from(list(OPERATIONS)), st.dictionaries(FIELDS, VALUE, max_size=4))
@pytest.mark.usefixtures("priced")
def test_no_body_is_answered_with_a_fault_of_ours(
    alice: Caller, ollama: FakeOllama, dialect: OpenAIDialect, fields: dict[str, Any]
) -> None:
    model = "nomic-embed-text" if dialect is EMBEDDINGS else "llama3"

    response = alice.post(PATHS[dialect], **{"model": model, **ASKED[dialect], **fields})

    body = b"".join(response.streaming_content) if response.streaming else response.content
    assert response.status_code in (200, 400), body
    assert b"upstream_" not in body and b"internal_error" not in body
    assert not Hold.objects.filter(state="open").exists()


@pytest.mark.parametrize("line", [b'{"embeddings":[["x"]]}', b'{"embeddings":[[1e300]]}'])
@pytest.mark.usefixtures("priced")
def test_vectors_that_are_none_are_an_upstream_error(
    alice: Caller, ollama: FakeOllama, line: bytes
) -> None:
    ollama.answer("/api/embed", Line(line))

    response = alice.post("/v1/embeddings", model="llama3", input="x", encoding_format="base64")

    assert (response.status_code, response.json()["error"]["code"]) == (502, "upstream_broke")


def test_an_upstream_line_is_read_into_every_kind_of_answer() -> None:
    line = b'{"message":{"content":"a","thinking":"b","tool_calls":[{}]},"logprobs":[{},5]}'

    chunk = read_chunk(Operation.CHAT, line)

    for dialect in WRITERS:
        assert pieces_of(dialect, streamed(dialect, chunk, end())) == "a"
