"""How OpenAI's family reads a request and writes an answer."""

import json
from contextlib import suppress
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as examples
from hypothesis import strategies as st

from billing.models import Hold, TokenUsage
from gateway.dialects.openai.dialect import CHAT, COMPLETIONS, EMBEDDINGS, RESPONSES, OpenAIDialect
from gateway.errors import BadRequest, UpstreamBroke
from gateway.metering import Operation, Receipt, Usage
from gateway.upstream.chunk import Chunk
from gateway.upstream.protocol import read_chunk
from gateway.validation.inference_request import InferenceRequest
from gateway.validation.policy import build
from gateway.validation.rules import Limits
from tests.fakes.ollama import FakeOllama
from tests.fakes.script import Close, Line, Raw, Sleep, slices, tokens
from tests.harness.callers import Caller

# The moment stands in it: 2026-01-01T00:00:00Z.
REQUEST_ID = "019b76da-a800-7000-8000-000000000000"
CREATED = 1767225600
RECEIPT = Receipt(Usage(5, 9), Decimal("0.000046"), "USD")
LIMITS = Limits(10_000, 2, 10_000, 4, 100, 1000)
HELLO = [{"role": "user", "content": "hello there"}]
CALL = {"id": "a", "function": {"name": "f", "arguments": {"x": 1}}}

OPERATIONS = {
    CHAT: Operation.CHAT,
    COMPLETIONS: Operation.GENERATE,
    EMBEDDINGS: Operation.EMBED,
    RESPONSES: Operation.CHAT,
}
ASKED: dict[OpenAIDialect, dict[str, Any]] = {
    CHAT: {"messages": HELLO},
    COMPLETIONS: {"prompt": "hi"},
    EMBEDDINGS: {"input": "hi"},
    RESPONSES: {"input": "hi"},
}
WRITERS = [CHAT, COMPLETIONS, RESPONSES]
NAMES = {CHAT: "chat", COMPLETIONS: "completions", EMBEDDINGS: "embeddings", RESPONSES: "responses"}


def readable(value: Any) -> str:
    return NAMES[value] if isinstance(value, OpenAIDialect) else str(value)


each_writer = pytest.mark.parametrize("dialect", WRITERS, ids=readable)


def parse(dialect: OpenAIDialect, **fields: Any) -> InferenceRequest:
    return dialect.parse(OPERATIONS[dialect], {"model": "llama3", **ASKED[dialect], **fields})


def upstream(dialect: OpenAIDialect, **fields: Any) -> dict[str, Any]:
    """Return what the model server would be asked."""
    return build(parse(dialect, **fields), "llama3:latest", LIMITS).body


def renderer(dialect: OpenAIDialect, **fields: Any) -> Any:
    return dialect.renderer(parse(dialect, **fields), REQUEST_ID)


def said(text: str = "", **more: Any) -> Chunk:
    return Chunk(text=text, **more)


def end(reason: str = "stop", **more: Any) -> Chunk:
    return Chunk(done=True, fields={"done_reason": reason}, **more)


def events(stream: bytes) -> list[Any]:
    """Return the data of each event, which must be well framed and ASCII."""
    assert stream.endswith(b"\n\n") and stream.isascii()
    blocks = [block for block in stream.decode().split("\n\n") if block]
    found = [line[6:] for block in blocks for line in block.split("\n") if line[:6] == "data: "]
    return [one if one == "[DONE]" else json.loads(one) for one in found]


def streamed(dialect: OpenAIDialect, *chunks: Chunk, **fields: Any) -> list[Any]:
    writer = renderer(dialect, **fields)
    *first, last = chunks
    return events(b"".join(map(writer.chunk, first)) + writer.last(last, RECEIPT))


def whole(dialect: OpenAIDialect, *chunks: Chunk, **fields: Any) -> Any:
    return json.loads(renderer(dialect, **fields).body(chunks, RECEIPT))


def text_of(dialect: OpenAIDialect, answer: Any) -> str:
    """Return the text of a whole answer."""
    if dialect is RESPONSES:
        parts = [part for item in answer["output"] for part in item.get("content", [])]
        return "".join(part["text"] for part in parts)
    choice = answer["choices"][0]
    return str(choice["text"] if dialect is COMPLETIONS else choice["message"]["content"])


def pieces_of(dialect: OpenAIDialect, found: list[Any]) -> str:
    """Return the text of a stream, put together as its clients do."""
    if dialect is RESPONSES:
        deltas = [e for e in found if e["type"] == "response.output_text.delta"]
        return "".join(e["delta"] for e in deltas)
    choices = [e["choices"][0] for e in found if e != "[DONE]" and e.get("choices")]
    if dialect is COMPLETIONS:
        return "".join(choice["text"] for choice in choices)
    return "".join(choice["delta"].get("content", "") for choice in choices)


def is_complete(stream: bytes) -> bool:
    return any(mark in stream for mark in (b"[DONE]", b"response.completed", b"incomplete\n"))


# --- Requests -------------------------------------------------------------------------------------

IMAGE = {"type": "image_url", "image_url": {"url": "https://example.com/a.png"}}
FUNCTION = {"type": "function", "function": {"name": "f"}}
REFUSALS: list[tuple[OpenAIDialect, dict[str, Any], str]] = [
    (CHAT, {"n": 2}, "'n' must be 1"),
    (CHAT, {"logit_bias": {"5": 1}}, "'logit_bias'"),
    (CHAT, {"functions": [{"name": "f"}]}, "'functions'"),
    (CHAT, {"function_call": {"name": "f"}}, "'function_call'"),
    (CHAT, {"web_search_options": {}}, "'web_search_options'"),
    (CHAT, {"audio": {}}, "'audio'"),
    (CHAT, {"modalities": ["text", "audio"]}, "'modalities'"),
    (CHAT, {"tool_choice": "required"}, "'tool_choice'"),
    (CHAT, {"tool_choice": FUNCTION}, "'tool_choice'"),
    (CHAT, {"tools": {}}, "'tools' must be a list"),
    (CHAT, {"tools": [{"type": "custom"}]}, r"'tools\[0\]' must be of type function"),
    (CHAT, {"tools": [{"type": "function"}]}, r"'tools\[0\]' must be a function with a name"),
    (CHAT, {"max_tokens": 0}, "'max_tokens' must be"),
    (CHAT, {"max_completion_tokens": 1.5}, "'max_completion_tokens' must be"),
    (CHAT, {"reasoning_effort": "huge"}, "'reasoning_effort'"),
    (CHAT, {"response_format": {"type": "json_schema"}}, "'response_format'"),
    (CHAT, {"response_format": "json"}, "'response_format' must be an object"),
    (CHAT, {"stream_options": True}, "'stream_options' must be an object"),
    (CHAT, {"messages": []}, "'messages'"),
    (CHAT, {"messages": [{"content": "x"}]}, r"'messages\[0\].role' is required"),
    (CHAT, {"messages": [{"role": "user", "content": 5}]}, r"'messages\[0\].content'"),
    (CHAT, {"messages": [{"role": "user", "content": [IMAGE]}]}, r"content\[0\]' must be a data"),
    (CHAT, {"messages": [{"role": "user", "content": [{"type": "file"}]}]}, r"content\[0\]"),
    (COMPLETIONS, {"prompt": ""}, "'prompt'"),
    (COMPLETIONS, {"prompt": ["a", "b"]}, "'prompt' must be one text"),
    (COMPLETIONS, {"prompt": [1, 2]}, "'prompt' must be one text"),
    (COMPLETIONS, {"best_of": 2}, "'best_of'"),
    (COMPLETIONS, {"echo": True}, "'echo'"),
    (COMPLETIONS, {"logprobs": True}, "'logprobs' must be a whole number"),
    (EMBEDDINGS, {"input": [1, 2]}, "arrays of tokens"),
    (EMBEDDINGS, {"input": []}, "'input' is required"),
    (EMBEDDINGS, {"encoding_format": "int8"}, "'encoding_format'"),
    (RESPONSES, {"previous_response_id": "resp_1"}, "nothing is kept here"),
    (RESPONSES, {"conversation": "conv_1"}, "nothing is kept here"),
    (RESPONSES, {"store": True}, "'store' must be false"),
    (RESPONSES, {"background": True}, "'background'"),
    (RESPONSES, {"prompt": {"id": "p"}}, "'prompt'"),
    (RESPONSES, {"tools": [{"type": "web_search"}]}, "must be of type function"),
    (RESPONSES, {"tool_choice": "required"}, "'tool_choice'"),
    (RESPONSES, {"truncation": "some"}, "'truncation'"),
    (RESPONSES, {"input": []}, "'input' must be"),
    (RESPONSES, {"input": [{"type": "reasoning"}]}, "'input' holds nothing"),
    (RESPONSES, {"input": [{"type": "item_reference"}]}, r"'input\[0\]' must be of type"),
    (RESPONSES, {"input": [{"type": "function_call", "name": 5}]}, r"'input\[0\].name'"),
    (RESPONSES, {"instructions": ["x"]}, "'instructions' must be a text"),
    (RESPONSES, {"text": {"format": {"type": "grammar"}}}, "'text.format'"),
    (RESPONSES, {"reasoning": {"effort": 5}}, "'reasoning.effort'"),
]


@pytest.mark.parametrize(("dialect", "fields", "message"), REFUSALS, ids=readable)
def test_what_cannot_be_honoured_is_refused_by_name(
    dialect: OpenAIDialect, fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(BadRequest, match=message):
        parse(dialect, **fields)


HARMLESS: list[tuple[OpenAIDialect, dict[str, Any]]] = [
    (CHAT, {"n": 1, "logit_bias": {}, "functions": [], "modalities": ["text"], "tools": []}),
    (CHAT, {"tool_choice": "none", "tools": [FUNCTION], "store": True, "verbosity": "low"}),
    (CHAT, {"response_format": {"type": "text"}, "stream_options": None, "max_tokens": None}),
    (RESPONSES, {"store": False, "background": False, "previous_response_id": None}),
    (RESPONSES, {"include": ["reasoning.encrypted_content"], "text": {"verbosity": "low"}}),
]


@pytest.mark.parametrize(("dialect", "fields"), HARMLESS, ids=readable)
def test_what_asks_for_nothing_special_is_let_pass(
    dialect: OpenAIDialect, fields: dict[str, Any]
) -> None:
    assert set(upstream(dialect, **fields)) == {"model", "stream", "messages", "options"}


@pytest.mark.parametrize("written", ["{", "[1]", '{"a":NaN}', '{"a":1e999}', "9" * 5000, 5])
def test_arguments_of_a_call_are_json_that_can_go_on(written: Any) -> None:
    call = {"id": "a", "function": {"name": "f", "arguments": written}}

    with pytest.raises(BadRequest, match=r"tool_calls\[0\].function.arguments' must be a JSON"):
        parse(CHAT, messages=[{"role": "assistant", "tool_calls": [call]}])


def test_the_newer_limit_wins_and_null_is_no_limit() -> None:
    both = upstream(CHAT, max_completion_tokens=7, max_tokens=9)
    older = upstream(CHAT, max_completion_tokens=None, max_tokens=9)

    assert (both["options"]["num_predict"], older["options"]["num_predict"]) == (7, 9)
    assert upstream(CHAT, max_tokens=10**9)["options"]["num_predict"] == 1000
    assert upstream(CHAT)["options"]["num_predict"] == 100


def test_developers_speak_as_the_system_and_parts_are_joined() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]

    [message] = upstream(CHAT, messages=[{"role": "developer", "content": parts}])["messages"]

    assert message == {"role": "system", "content": "a\nb"}


def test_thinking_of_an_earlier_turn_is_passed_on() -> None:
    turn = {"role": "assistant", "content": "x", "reasoning_content": "hm"}

    assert upstream(CHAT, messages=[turn])["messages"][0]["thinking"] == "hm"


@pytest.mark.parametrize(("asked", "cut"), [("auto", True), ("disabled", False), (None, None)])
def test_a_response_may_be_refused_rather_than_cut(asked: Any, cut: Any) -> None:
    assert upstream(RESPONSES, truncation=asked).get("truncate") is cut


@pytest.mark.parametrize(
    "asked", [{"include": ["message.output_text.logprobs"]}, {"top_logprobs": 0}]
)
def test_a_response_may_come_with_probabilities(asked: dict[str, Any]) -> None:
    entry = {"token": "a", "logprob": -1.0}

    answer = whole(RESPONSES, said("a", fields={"logprobs": [entry]}), end(), **asked)

    assert upstream(RESPONSES, **asked)["logprobs"] is True
    [told] = answer["output"][0]["content"][0]["logprobs"]
    assert (told["token"], told["bytes"], told["top_logprobs"]) == ("a", [97], [])


# --- Answers --------------------------------------------------------------------------------------


def test_the_moment_of_an_answer_is_that_of_its_request() -> None:
    for dialect in (CHAT, COMPLETIONS):
        assert whole(dialect, end())["created"] == CREATED
    assert whole(RESPONSES, end())["created_at"] == CREATED


@each_writer
def test_an_answer_without_a_word_is_an_answer(dialect: OpenAIDialect) -> None:
    assert text_of(dialect, whole(dialect, end())) == ""
    assert pieces_of(dialect, streamed(dialect, end())) == ""


@each_writer
def test_an_answer_that_fails_before_it_began_is_well_formed(dialect: OpenAIDialect) -> None:
    found = renderer(dialect).error(UpstreamBroke())

    told = [event for event in events(found) if "error" in event]
    assert told[0]["error"]["code"] == "upstream_broke" and not is_complete(found)
    if dialect is RESPONSES:
        kinds = [event["type"] for event in events(found)]
        assert kinds[0] == "response.created" and kinds[-2:] == ["error", "response.failed"]


def test_a_failed_response_holds_what_came() -> None:
    writer = renderer(RESPONSES)
    writer.chunk(said(tool_calls=[CALL]))

    failed = events(writer.error(UpstreamBroke()))[-1]["response"]

    assert failed["status"] == "failed" and failed["error"]["code"] == "server_error"
    assert failed["output"][0]["arguments"] == '{"x": 1}' and failed["usage"] is None


def test_a_last_chunk_that_says_something_is_not_lost() -> None:
    last = end(text="b", tool_calls=[CALL])

    for dialect in WRITERS:
        assert pieces_of(dialect, streamed(dialect, said("a"), last)) == "ab"
    assert whole(CHAT, said("a"), last)["choices"][0]["finish_reason"] == "tool_calls"


@pytest.mark.parametrize("native", [{}, {"function": "f"}, {"function": {"name": 5}}])
def test_a_call_without_sense_is_still_a_call(native: dict[str, Any]) -> None:
    [call] = whole(CHAT, said(tool_calls=[native]), end())["choices"][0]["message"]["tool_calls"]
    [item] = whole(RESPONSES, said(tool_calls=[native]), end())["output"]

    assert call["id"] and call["function"]["arguments"] == item["arguments"] == "{}"
    assert isinstance(call["function"]["name"], str) and item["call_id"]


def test_a_cut_answer_ends_with_length_also_in_a_call() -> None:
    for dialect in (CHAT, COMPLETIONS):
        assert whole(dialect, said("a"), end("length"))["choices"][0]["finish_reason"] == "length"


def test_probabilities_of_a_completion_know_where_their_text_stands() -> None:
    def token(text: str) -> Chunk:
        entry = {"token": text, "logprob": -1.0, "top_logprobs": [{"token": "x", "logprob": -2.0}]}
        return said(text, fields={"logprobs": [entry]})

    chunks = [token("ab"), token("c"), end()]
    found = [e["choices"][0]["logprobs"] for e in streamed(COMPLETIONS, *chunks)[:-1]]

    assert [one and one["text_offset"] for one in found] == [[0], [2], None]
    assert whole(COMPLETIONS, *chunks)["choices"][0]["logprobs"] == {
        "tokens": ["ab", "c"],
        "token_logprobs": [-1.0, -1.0],
        "top_logprobs": [{"x": -2.0}, {"x": -2.0}],
        "text_offset": [0, 2],
    }


def test_probabilities_of_thinking_are_not_told() -> None:
    entry = {"token": "a", "logprob": -1.0}
    thought = Chunk(thinking="a", fields={"logprobs": [entry]})

    answer = whole(CHAT, thought, said("b", fields={"logprobs": [entry]}), end())

    assert len(answer["choices"][0]["logprobs"]["content"]) == 1


TEXT = st.text(st.characters(codec=None) | st.sampled_from("\x85\u2028\ud800\n\r😀"), max_size=12)
CHUNKS = st.lists(
    st.builds(
        Chunk,
        text=TEXT,
        thinking=TEXT,
        tool_calls=st.sampled_from([[], [], [CALL], [{"function": {"name": "g"}}]]),
    ),
    max_size=8,
)


@examples(deadline=None, max_examples=60)
@given(CHUNKS, st.sampled_from(["stop", "length"]))
def test_the_pieces_of_a_stream_make_the_whole_answer(chunks: list[Chunk], reason: str) -> None:
    text = "".join(chunk.text for chunk in chunks)
    for dialect in WRITERS:
        found = streamed(dialect, *chunks, end(reason))
        answer = whole(dialect, *chunks, end(reason))

        assert pieces_of(dialect, found) == (text_of(dialect, answer) if text else "") == text
        if dialect is RESPONSES:
            assert found[-1]["response"] == answer
            assert [event["sequence_number"] for event in found] == list(range(len(found)))
        else:
            assert found[-1] == "[DONE]" and len({event["id"] for event in found[:-1]}) == 1
            assert found[-2]["choices"][0]["finish_reason"] == answer["choices"][0]["finish_reason"]


@examples(deadline=None, max_examples=60)
@given(CHUNKS)
def test_a_responses_items_open_grow_and_close_in_order(chunks: list[Chunk]) -> None:
    opened: dict[int, str] = {}
    closed: list[Any] = []
    for event in streamed(RESPONSES, *chunks, end()):
        if event["type"] == "response.output_item.added":
            assert len(opened) == len(closed) == event["output_index"]
            opened[event["output_index"]] = event["item"]["id"]
        elif event["type"] == "response.output_item.done":
            closed.append(event["item"])
        elif "item_id" in event:
            assert opened[event["output_index"]] == event["item_id"]
    assert [item["id"] for item in closed] == list(opened.values())
    assert len(set(opened.values())) == len(opened)


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
    names = ("id", "item_id", "created", "created_at", "call_id")

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
