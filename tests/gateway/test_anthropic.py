"""How Anthropic's family reads a request, writes an answer, and tells of an error."""

import json
from collections.abc import Iterator
from contextlib import suppress
from decimal import Decimal
from typing import Any

import pytest
from django.test import RequestFactory
from hypothesis import HealthCheck, given
from hypothesis import settings as examples
from hypothesis import strategies as st

from billing.models import Hold, TokenUsage
from gateway.dialects import ANTHROPIC, OPENAI, dialect_of
from gateway.dialects.anthropic.parsing import THINKING, chat_fields
from gateway.errors import BadRequest, GatewayError, UpstreamBroke
from gateway.http import context, error_handlers
from gateway.metering import Operation, Receipt, Usage
from gateway.upstream.chunk import Chunk
from gateway.upstream.protocol import read_chunk
from gateway.validation.inference_request import InferenceRequest
from gateway.validation.policy import build
from gateway.validation.rules import Limits
from tests.fakes.ollama import FakeOllama
from tests.fakes.script import Close, Wire, error_line, rendered, reply, tokens
from tests.gateway.test_errors import KINDS
from tests.gateway.test_images import encoded, png
from tests.harness.callers import Caller

CHAT = Operation.CHAT
REQUEST_ID = "01890a5d-ac96-774b-bcce-b302099a8057"
RECEIPT = Receipt(Usage(5, 9), Decimal("0.000046"), "USD")
USAGE = {"input_tokens": 5, "output_tokens": 9, "cost": "0.000046", "currency": "USD"}
HELLO = [{"role": "user", "content": "hello there"}]
PNG = {"type": "base64", "media_type": "image/png", "data": encoded(png())}
WEATHER = {"name": "weather", "description": "Today's", "input_schema": {"type": "object"}}
CALL = {"function": {"name": "weather", "arguments": {"city": "Kiel"}}}
LIMITS = Limits(10**6, 8, 10**6, 8, 100, 1000)


def fields(**asked: Any) -> dict[str, Any]:
    return chat_fields({"max_tokens": 64, "messages": HELLO, **asked})


def said(*content: Any, role: str = "user") -> list[dict[str, Any]]:
    """The native messages that one message of blocks becomes."""
    found: list[dict[str, Any]] = fields(messages=[{"role": role, "content": list(content)}])[
        "messages"
    ]
    return found


def text(words: str) -> dict[str, Any]:
    return {"type": "text", "text": words}


def result(content: Any, **more: Any) -> dict[str, Any]:
    return {"type": "tool_result", "tool_use_id": "toolu_1", "content": content, **more}


def renderer(stream: bool = True) -> Any:
    return ANTHROPIC.renderer(InferenceRequest(CHAT, "LLaMA3", stream), REQUEST_ID)


def events(body: bytes) -> list[dict[str, Any]]:
    """The events of a stream, each of which must be framed as Anthropic frames it."""
    assert body.isascii() and (not body or body.endswith(b"\n\n"))
    return [framed(frame) for frame in body.decode().split("\n\n")[:-1]]


def framed(frame: str) -> dict[str, Any]:
    name, data = frame.split("\n")
    value: dict[str, Any] = json.loads(data.removeprefix("data: "))
    assert name == f"event: {value['type']}"
    return value


def names(body: bytes) -> list[str]:
    return [event["type"] for event in events(body)]


# --- Which family ---------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/v1/messages", "/v1/messages/count_tokens", "/v1/messages/x"])
def test_the_addresses_of_messages_speak_anthropic(path: str) -> None:
    assert dialect_of(path) is ANTHROPIC


def test_its_neighbours_speak_openai() -> None:
    assert dialect_of("/v1/chat/completions") is dialect_of("/v1/message") is OPENAI


# --- What must be there ---------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [None, 0, -1, "64", 64.0, True, [], {}])
def test_a_limit_of_tokens_is_required(limit: Any) -> None:
    with pytest.raises(BadRequest, match="'max_tokens' is required"):
        fields(max_tokens=limit)


@pytest.mark.parametrize("messages", [None, [], {}, "hi", 5, False])
def test_messages_are_required(messages: Any) -> None:
    with pytest.raises(BadRequest, match="'messages'"):
        fields(messages=messages)


@pytest.mark.parametrize("model", [None, "", 5, ["llama3"]])
def test_a_model_is_required(model: Any) -> None:
    with pytest.raises(BadRequest, match="model is required"):
        ANTHROPIC.parse(CHAT, {"model": model, "max_tokens": 5, "messages": HELLO})


def test_it_streams_only_when_asked() -> None:
    body = {"model": "m", "max_tokens": 5, "messages": HELLO}

    assert ANTHROPIC.parse(CHAT, body).stream is False
    assert ANTHROPIC.parse(CHAT, {**body, "stream": True}).stream is True
    with pytest.raises(BadRequest, match="'stream'"):
        ANTHROPIC.parse(CHAT, {**body, "stream": "yes"})


def test_a_key_that_only_looks_like_a_known_one_is_refused() -> None:
    with pytest.raises(BadRequest, match="MODEL"):
        ANTHROPIC.parse(CHAT, {"model": "cheap", "MODEL": "dear", "messages": HELLO})


# --- Options --------------------------------------------------------------------------------------


def test_sampling_and_stops_become_options() -> None:
    found = fields(temperature=0.5, top_p=0.9, top_k=40, stop_sequences=["END"])

    assert found["options"] == {
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 40,
        "stop": ["END"],
        "num_predict": 64,
    }


@pytest.mark.parametrize("name", ["temperature", "top_p", "top_k"])
@pytest.mark.parametrize("value", ["1", True, [], {}])
def test_sampling_takes_numbers(name: str, value: Any) -> None:
    with pytest.raises(BadRequest, match=f"'{name}' must be a number"):
        fields(**{name: value})


@pytest.mark.parametrize("value", ["END", [5], {}, 5])
def test_stop_sequences_are_a_list_of_strings(value: Any) -> None:
    with pytest.raises(BadRequest, match="'stop_sequences'"):
        fields(stop_sequences=value)


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        ({}, None),
        ({"thinking": {"type": "enabled", "budget_tokens": 1024}}, True),
        ({"thinking": {"type": "adaptive"}}, None),
        ({"thinking": {"type": "disabled"}}, False),
        ({"output_config": {"effort": "low"}}, "low"),
        ({"output_config": {"effort": "xhigh"}}, "max"),
        ({"thinking": {"type": "adaptive"}, "output_config": {"effort": "high"}}, "high"),
        ({"thinking": {"type": "disabled"}, "output_config": {"effort": "high"}}, False),
        ({"output_config": {"effort": None}}, None),
    ],
)
def test_thinking_is_on_off_or_at_a_level(asked: dict[str, Any], found: Any) -> None:
    assert fields(**asked).get("think") == found


@pytest.mark.parametrize("asked", [True, "enabled", {}, {"type": "hard"}, {"type": []}, []])
def test_thinking_of_an_unknown_type_is_refused(asked: Any) -> None:
    with pytest.raises(BadRequest, match="'thinking.type' must be one of " + ", ".join(THINKING)):
        fields(thinking=asked)


@pytest.mark.parametrize("asked", [{"effort": "huge"}, {"effort": []}, {"effort": 5}, "low", [5]])
def test_an_output_config_that_makes_no_sense_is_refused(asked: Any) -> None:
    with pytest.raises(BadRequest, match="'output_config"):
        fields(output_config=asked)


def test_a_schema_becomes_the_format() -> None:
    schema = {"type": "object"}
    wrapped = {"type": "json_schema", "schema": schema}

    assert fields(output_config={"format": wrapped})["format"] == schema
    assert fields(output_format=wrapped)["format"] == schema
    for odd in ({"type": "json_schema"}, {"type": "xml", "schema": {}}, "json", [5]):
        with pytest.raises(BadRequest, match=r"'output_config\.format'"):
            fields(output_config={"format": odd})


DROPPED = {
    "metadata": {"user_id": "u"},
    "service_tier": "auto",
    "cache_control": {"type": "ephemeral"},
    "betas": ["x"],
    "context_management": {"edits": []},
    "keep_alive": -1,
    "num_ctx": 10**9,
    "nonsense": 5,
}


def test_what_has_no_meaning_here_is_dropped() -> None:
    assert fields(**DROPPED) == fields()


@pytest.mark.parametrize("name", ["mcp_servers", "container"])
def test_what_runs_elsewhere_is_refused(name: str) -> None:
    with pytest.raises(BadRequest, match=f"'{name}' is not supported"):
        fields(**{name: [{"url": "https://x"}]})
    assert fields(**{name: None}) == fields()


# --- Tools ----------------------------------------------------------------------------------------


def test_tools_are_told_to_the_model() -> None:
    [tool] = fields(tools=[{**WEATHER, "type": "custom", "strict": True}])["tools"]

    function = {"name": "weather", "description": "Today's", "parameters": {"type": "object"}}
    assert tool == {"type": "function", "function": function}


def test_tools_are_not_told_when_none_may_be_used() -> None:
    assert "tools" in fields(tools=[WEATHER], tool_choice={"type": "auto"})
    assert "tools" not in fields(tools=[WEATHER], tool_choice={"type": "none"})
    assert "tools" not in fields(tools=[])


@pytest.mark.parametrize("choice", [{"type": "any"}, {"type": "tool", "name": "x"}, "auto", 5, {}])
def test_a_call_cannot_be_forced(choice: Any) -> None:
    with pytest.raises(BadRequest, match="cannot be forced"):
        fields(tools=[WEATHER], tool_choice=choice)


@pytest.mark.parametrize("kind", ["web_search_20250305", "bash_20250124", "function", 5, []])
def test_tools_that_are_not_the_clients_own_are_refused(kind: Any) -> None:
    with pytest.raises(BadRequest, match=r"'tools\[0\]' is of type"):
        fields(tools=[{**WEATHER, "type": kind}])


@pytest.mark.parametrize(
    "tool",
    [5, {}, {"name": "x"}, {**WEATHER, "name": 5}, {**WEATHER, "input_schema": []}],
)
def test_a_tool_has_a_name_and_a_schema(tool: Any) -> None:
    with pytest.raises(BadRequest, match=r"'tools\[0\]"):
        fields(tools=[tool])


def test_tools_are_a_list() -> None:
    with pytest.raises(BadRequest, match="'tools' must be a list"):
        fields(tools={"name": "x"})


# --- Messages -------------------------------------------------------------------------------------


@pytest.mark.parametrize("asked", ["Be brief.", [{"type": "text", "text": "Be brief."}]])
def test_the_system_prompt_is_the_first_message(asked: Any) -> None:
    assert fields(system=asked)["messages"][0] == {"role": "system", "content": "Be brief."}


@pytest.mark.parametrize("asked", [None, "", []])
def test_without_a_system_prompt_there_is_no_such_message(asked: Any) -> None:
    assert fields(system=asked)["messages"] == HELLO


def test_text_blocks_are_joined_and_their_cache_marks_dropped() -> None:
    marked = {**text("b"), "cache_control": {"type": "ephemeral"}}

    assert said(text("a"), marked) == [{"role": "user", "content": "a\nb"}]
    assert said() == [{"role": "user", "content": ""}]


def test_an_image_is_passed_on_as_base64() -> None:
    found = said({"type": "image", "source": PNG}, text("What is this?"))

    assert found == [{"role": "user", "content": "What is this?", "images": [PNG["data"]]}]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({"type": "url", "url": "http://10.0.0.1/x.png"}, "is of type url; only base64"),
        ({"type": "file", "file_id": "file_1"}, "is of type file; only base64"),
        (None, "only base64"),
        ("x", "only base64"),
        ({**PNG, "media_type": "image/gif"}, "image/png or image/jpeg"),
        ({**PNG, "media_type": []}, "image/png or image/jpeg"),
        ({**PNG, "data": 5}, "source.data' must be a string"),
    ],
)
def test_an_image_from_elsewhere_is_refused(source: Any, message: str) -> None:
    with pytest.raises(BadRequest, match=message):
        said({"type": "image", "source": source})


def test_an_assistants_turn_is_one_message() -> None:
    found = said(
        {"type": "thinking", "thinking": "I must look", "signature": "x"},
        {"type": "redacted_thinking", "data": "abc"},
        text("One moment."),
        {"type": "tool_use", "id": "toolu_1", "name": "weather", "input": {"city": "Kiel"}},
        role="assistant",
    )

    call = {"id": "toolu_1", "function": {"name": "weather", "arguments": {"city": "Kiel"}}}
    assert found == [
        {
            "role": "assistant",
            "content": "One moment.",
            "thinking": "I must look",
            "tool_calls": [call],
        }
    ]


def test_results_and_words_become_messages_in_order() -> None:
    use = {"type": "tool_use", "id": "toolu_1", "name": "weather", "input": {}}
    mixed = [text("before"), result("rain"), result([text("a"), text("b")]), text("after")]
    asked = [
        {"role": "assistant", "content": [use]},
        {"role": "user", "content": mixed},
    ]

    _use, *found = fields(messages=asked)["messages"]

    tool = {"role": "tool", "tool_call_id": "toolu_1", "tool_name": "weather"}
    assert found == [
        {"role": "user", "content": "before"},
        {**tool, "content": "rain"},
        {**tool, "content": "a\nb"},
        {"role": "user", "content": "after"},
    ]


def test_a_result_may_hold_images_be_empty_or_tell_of_an_error() -> None:
    tool = {"role": "tool", "tool_call_id": "toolu_1"}

    assert said(result([{"type": "image", "source": PNG}])) == [
        {**tool, "content": "", "images": [PNG["data"]]}
    ]
    assert said(result(None)) == said(result("")) == said(result([])) == [{**tool, "content": ""}]
    assert said(result("no such city", is_error=True)) == [
        {**tool, "content": "Error: no such city"}
    ]


@pytest.mark.parametrize("kind", ["document", "search_result", "server_tool_use", "x" * 999, 5, []])
def test_a_block_that_cannot_be_passed_on_is_refused(kind: Any) -> None:
    for place in ([{"type": kind}], [result([{"type": kind}])], ["hi"], [None]):
        with pytest.raises(BadRequest, match=r"'messages\[0\]\.content\[0\]") as caught:
            said(*place)
        assert len(caught.value.message) < 300


@pytest.mark.parametrize(
    ("role", "block"),
    [
        ("user", {"type": "tool_use", "id": "1", "name": "x", "input": {}}),
        ("user", {"type": "thinking", "thinking": "x"}),
        ("assistant", result("x")),
        ("assistant", {"type": "image", "source": PNG}),
        ("system", {"type": "image", "source": PNG}),
    ],
)
def test_a_block_in_anothers_message_is_refused(role: str, block: dict[str, Any]) -> None:
    with pytest.raises(BadRequest, match="supported here"):
        said(block, role=role)


@pytest.mark.parametrize("odd", [5, {}, {"role": "tool", "content": "x"}, {"role": []}, [], "hi"])
def test_a_message_has_a_role_and_a_content(odd: Any) -> None:
    with pytest.raises(BadRequest, match=r"'messages\[0\]"):
        fields(messages=[odd])


@pytest.mark.parametrize(
    "block",
    [{"type": "text"}, {"type": "tool_result"}, result("x", tool_use_id=5), result(5), result({})],
)
def test_a_block_without_what_it_is_for_is_refused(block: dict[str, Any]) -> None:
    with pytest.raises(BadRequest, match=r"'messages\[0\]\.content\[0\]"):
        said(block)


# --- Whatever is sent -----------------------------------------------------------------------------

NESTED = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["type", "text", "source", "content", "name"]), inner)
    ),
    max_leaves=8,
)
KIND = st.sampled_from(
    ["text", "image", "tool_use", "tool_result", "thinking", "redacted_thinking", "document", 5]
)
PARTS = ["type", "text", "source", "id", "name", "input", "tool_use_id", "content", "thinking"]
BLOCK = st.dictionaries(st.sampled_from(PARTS), NESTED | KIND) | NESTED
MESSAGE = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "assistant", "system"])},
    optional={"content": st.lists(BLOCK, max_size=3) | NESTED},
)
FIELDS = ["system", "tools", "tool_choice", "thinking", "output_config", "output_format", "top_k"]
FIELDS += ["stop_sequences", "temperature", "metadata", "stream", "container"]
BODY = st.fixed_dictionaries(
    {
        "model": st.just("llama3"),
        "max_tokens": st.just(5) | NESTED,
        "messages": st.lists(MESSAGE, min_size=1, max_size=3) | NESTED,
    },
    optional=dict.fromkeys(FIELDS, NESTED | st.lists(BLOCK, max_size=2)),
)


@examples(deadline=None, max_examples=200, suppress_health_check=[HealthCheck.too_slow])
@given(BODY)
def test_no_request_does_worse_than_being_refused(body: dict[str, Any]) -> None:
    with suppress(BadRequest):
        json.dumps(build(ANTHROPIC.parse(CHAT, body), "llama3", LIMITS).body)


# --- A whole answer -------------------------------------------------------------------------------


def native(**message: Any) -> Chunk:
    return read_chunk(CHAT, json.dumps({"message": message, "done": False}).encode())


def end(reason: str = "stop", **message: Any) -> Chunk:
    counts = {"prompt_eval_count": 5, "eval_count": 9}
    ended = {"message": message, "done": True, "done_reason": reason, **counts}
    return read_chunk(CHAT, json.dumps(ended).encode())


def whole(*chunks: Chunk, receipt: Receipt | None = RECEIPT) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(renderer(stream=False).body(chunks, receipt))
    return found


def streamed(*chunks: Chunk) -> bytes:
    writer = renderer()
    written = [writer.chunk(chunk) for chunk in chunks[:-1]]
    return b"".join([*written, writer.last(chunks[-1], RECEIPT)])


def test_a_whole_answer_is_a_message() -> None:
    assert whole(native(thinking="Hm"), native(content="Hel"), end(content="lo")) == {
        "id": "msg_01890a5dac96774bbcceb302099a8057",
        "type": "message",
        "role": "assistant",
        "model": "LLaMA3",
        "content": [
            {"type": "thinking", "thinking": "Hm", "signature": ""},
            {"type": "text", "text": "Hello"},
        ],
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "usage": USAGE,
    }


def test_a_call_has_an_id_and_its_arguments_as_an_object() -> None:
    answer = whole(native(tool_calls=[CALL, {"id": "call_7", **CALL}]), end())

    ours, theirs = answer["content"]
    assert ours["id"] == "toolu_01890a5dac96774bbcceb302099a8057_0" and theirs["id"] == "call_7"
    assert ours["type"] == "tool_use" and ours["name"] == "weather"
    assert ours["input"] == {"city": "Kiel"} and answer["stop_reason"] == "tool_use"


@pytest.mark.parametrize("function", [None, 5, {}, {"name": None, "arguments": "x"}, [1]])
def test_a_call_that_makes_no_sense_breaks_no_answer(function: Any) -> None:
    [block] = whole(native(tool_calls=[{"function": function}]), end())["content"]

    assert block["input"] == {} and isinstance(block["name"], str)


def test_an_answer_at_its_limit_says_so() -> None:
    assert whole(native(content="x"), end("length"))["stop_reason"] == "max_tokens"
    assert whole(native(tool_calls=[CALL]), end("length"))["stop_reason"] == "max_tokens"


def test_an_empty_answer_has_no_blocks() -> None:
    assert whole(end())["content"] == []
    assert [e["type"] for e in events(streamed(end()))] == [
        "message_start",
        "ping",
        "message_delta",
        "message_stop",
    ]


def test_without_a_receipt_the_model_servers_counts_are_told() -> None:
    counted = {"input_tokens": 5, "output_tokens": 9}
    assert whole(end(), receipt=None)["usage"] == counted
    uncounted = whole(Chunk(done=True), receipt=None)["usage"]
    assert uncounted == {"input_tokens": 0, "output_tokens": 0}


# --- A stream -------------------------------------------------------------------------------------


def test_a_stream_has_its_events_in_order() -> None:
    chunks = [native(thinking="H"), native(thinking="m"), native(content="One"), native()]
    body = streamed(*chunks, native(content=" moment"), native(tool_calls=[CALL]), end())

    found = [(e["type"], e.get("index"), e.get("delta", {}).get("type")) for e in events(body)]
    assert found == [
        ("message_start", None, None),
        ("ping", None, None),
        ("content_block_start", 0, None),
        ("content_block_delta", 0, "thinking_delta"),
        ("content_block_delta", 0, "thinking_delta"),
        ("content_block_delta", 0, "signature_delta"),
        ("content_block_stop", 0, None),
        ("content_block_start", 1, None),
        ("content_block_delta", 1, "text_delta"),
        ("content_block_delta", 1, "text_delta"),
        ("content_block_stop", 1, None),
        ("content_block_start", 2, None),
        ("content_block_delta", 2, "input_json_delta"),
        ("content_block_stop", 2, None),
        ("message_delta", None, None),
        ("message_stop", None, None),
    ]


def test_a_stream_ends_with_the_true_usage_and_begins_without() -> None:
    start, *_, delta, _stop = events(streamed(native(content="x"), end()))

    assert start["message"]["usage"] == {"input_tokens": 0, "output_tokens": 0}
    assert start["message"]["content"] == [] and start["message"]["stop_reason"] is None
    assert delta["usage"] == USAGE
    assert delta["delta"] == {"stop_reason": "end_turn", "stop_sequence": None}


def test_a_silent_stream_begins_and_then_pings() -> None:
    writer = renderer()

    assert names(writer.keepalive()) == ["message_start", "ping"]
    assert names(writer.keepalive()) == ["ping"]
    assert names(writer.chunk(native(content="x"))) == [
        "content_block_start",
        "content_block_delta",
    ]
    assert names(writer.keepalive()) == ["ping"]


def test_a_broken_stream_ends_with_an_error_and_leaves_all_open() -> None:
    writer = renderer()
    writer.chunk(native(content="x"))

    [error] = events(writer.error(UpstreamBroke()))
    assert error == {
        "type": "error",
        "error": {
            "type": "api_error",
            "message": "The model server broke off its answer.",
            "details": {"error_code": "upstream_broke"},
        },
        "request_id": REQUEST_ID,
    }


def accumulated(body: bytes) -> list[dict[str, Any]]:
    """The blocks a client puts together from a stream."""
    blocks: list[dict[str, Any]] = []
    written = ""
    for event in events(body):
        if event["type"] == "content_block_start":
            assert event["index"] == len(blocks)
            blocks.append(event["content_block"])
            written = ""
        elif event["type"] == "content_block_delta":
            assert event["index"] == len(blocks) - 1
            written += event["delta"].get("partial_json", "")
            for name in ("text", "thinking"):
                if name in event["delta"]:
                    blocks[-1][name] += event["delta"][name]
        elif event["type"] == "content_block_stop" and blocks[-1]["type"] == "tool_use":
            blocks[-1]["input"] = json.loads(written)
    return blocks


PIECE = st.builds(
    lambda content, thinking, calls: native(content=content, thinking=thinking, tool_calls=calls),
    st.text(max_size=5),
    st.text(max_size=3),
    st.lists(st.just(CALL), max_size=2),
)


@examples(deadline=None)
@given(st.lists(PIECE, max_size=8), st.booleans(), st.text(max_size=3))
def test_a_stream_says_what_a_whole_answer_says(
    chunks: list[Chunk], silent: bool, last_words: str
) -> None:
    writer, ended = renderer(), end(content=last_words)
    body = writer.keepalive() if silent else b""
    body += b"".join(writer.chunk(chunk) for chunk in chunks) + writer.last(ended, RECEIPT)

    answer = whole(*chunks, ended)
    assert accumulated(body) == answer["content"]
    assert events(body)[-2]["delta"]["stop_reason"] == answer["stop_reason"]
    kinds = names(body)
    assert kinds.count("message_start") == kinds.count("message_stop") == 1
    assert kinds.count("content_block_start") == kinds.count("content_block_stop")


@examples(deadline=None)
@given(st.lists(st.text(max_size=6), max_size=8))
def test_however_the_text_is_cut_its_pieces_are_all_of_it(pieces: list[str]) -> None:
    body = streamed(*[native(content=piece) for piece in pieces], end())

    deltas = [e["delta"]["text"] for e in events(body) if e["type"] == "content_block_delta"]
    assert "".join(deltas) == "".join(pieces)


# --- Errors ---------------------------------------------------------------------------------------

TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    408: "invalid_request_error",
    409: "invalid_request_error",
    411: "invalid_request_error",
    413: "request_too_large",
    422: "invalid_request_error",
    429: "rate_limit_error",
    499: "invalid_request_error",
    500: "api_error",
    502: "api_error",
    503: "overloaded_error",
    504: "timeout_error",
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_error_has_a_type_and_one_shape(kind: type[GatewayError]) -> None:
    request = RequestFactory().post("/v1/messages")
    context.attach(request)
    answer = error_handlers.render(kind("A sentence."), request)
    body = json.loads(answer.content)

    assert answer.status_code == kind.status
    assert set(body) == {"type", "error", "request_id"} and body["type"] == "error"
    assert body["error"]["type"] == TYPES[kind.status]
    assert body["error"]["details"] == {"error_code": kind.code}
    assert "sentence" in body["error"]["message"]


# --- Over HTTP ------------------------------------------------------------------------------------


def ask(caller: Caller, **asked: Any) -> Any:
    body = {"model": "llama3", "max_tokens": 64, "messages": HELLO, **asked}
    return caller.post("/v1/messages", body)


def body_of(answer: Any) -> bytes:
    return b"".join(answer.streaming_content) if answer.streaming else answer.content


@pytest.mark.usefixtures("priced")
def test_the_answer_bears_its_request_id_under_both_names(
    alice: Caller, ollama: FakeOllama
) -> None:
    good, bad = ask(alice), ask(alice, max_tokens=0)

    row = TokenUsage.objects.get()
    assert good["request-id"] == good["x-request-id"] == str(row.request_id)
    assert good.json()["id"] == f"msg_{row.request_id.hex}"
    assert bad["request-id"] == bad.json()["request_id"] != good["request-id"]


@pytest.mark.usefixtures("priced")
def test_the_key_may_come_in_anthropics_header(alice: Caller, ollama: FakeOllama) -> None:
    body = {"model": "llama3", "max_tokens": 5, "messages": HELLO}
    headers = {"x-api-key": alice.secret, "anthropic-version": "2023-06-01"}

    answer = alice.client.post(
        "/v1/messages?beta=true", body, content_type="application/json", headers=headers
    )
    assert answer.status_code == 200 and answer.json()["usage"]["output_tokens"] == 5


@pytest.mark.usefixtures("priced")
def test_nothing_of_the_clients_own_goes_upstream_unread(alice: Caller, ollama: FakeOllama) -> None:
    ask(alice, system="Be brief.", **DROPPED)

    sent = ollama.requests[-1].json
    assert set(sent) == {"model", "messages", "options", "stream"}
    assert sent["options"] == {"num_predict": 64} and sent["stream"] is True


@pytest.mark.usefixtures("priced")
def test_a_limit_beyond_ours_is_clamped(alice: Caller, ollama: FakeOllama, settings: Any) -> None:
    settings.MAX_COMPLETION_TOKENS = 3

    answer = ask(alice, max_tokens=32_000).json()
    assert ollama.requests[-1].json["options"]["num_predict"] == 3
    assert (answer["stop_reason"], answer["usage"]["output_tokens"]) == ("max_tokens", 3)


@pytest.mark.usefixtures("priced")
@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
def test_the_usage_told_is_the_usage_billed(
    alice: Caller, ollama: FakeOllama, stream: bool
) -> None:
    answer = body_of(ask(alice, stream=stream))
    told = events(answer)[-2]["usage"] if stream else json.loads(answer)["usage"]

    row = TokenUsage.objects.get()
    assert (told["input_tokens"], told["output_tokens"]) == (2, 9)
    assert (row.prompt_tokens, row.completion_tokens) == (2, 9)
    assert Decimal(told["cost"]) == row.cost > 0
    assert isinstance(told["cost"], str) and told["currency"] == "USD"


@pytest.mark.usefixtures("priced")
@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
def test_an_answer_that_breaks_is_an_error(alice: Caller, ollama: FakeOllama, stream: bool) -> None:
    broken = error_line("CUDA error at /srv/ollama")
    ollama.answer("/api/chat", tokens("ab", path="/api/chat", done=False), broken)

    answer = ask(alice, stream=stream)
    body = body_of(answer)

    last = events(body)[-1] if stream else json.loads(body)
    assert answer.status_code == (200 if stream else 502)
    assert last["error"]["type"] == "api_error" and b"/srv" not in body
    assert last["request_id"] == answer["request-id"] and b"message_stop" not in body
    assert TokenUsage.objects.get().outcome == "upstream_broke"


@pytest.mark.usefixtures("priced")
def test_what_the_model_cannot_do_is_said(alice: Caller, ollama: FakeOllama) -> None:
    ollama.answer("/api/chat", reply({"error": "llama3 does not support thinking"}, 400))

    answer = ask(alice, thinking={"type": "enabled", "budget_tokens": 1024})
    assert answer.status_code == 400
    assert answer.json()["error"]["message"] == "model 'llama3:latest' does not support thinking"


def test_tokens_are_not_counted_beforehand_and_other_addresses_are_not_there(
    alice: Caller, ollama: FakeOllama
) -> None:
    for path in ("/v1/messages/count_tokens", "/v1/messages/batches", "/v1/messages/"):
        answer = alice.post(path, model="llama3", messages=HELLO)
        assert answer.status_code == 404 and answer["request-id"]
        assert answer.json()["error"]["type"] == "not_found_error"
    assert ollama.requests == []


@pytest.mark.parametrize(
    "asked",
    [
        {"MESSAGES": []},
        {"messages": [{"role": "user", "content": [{"type": "document"}]}]},
        {"tools": [{"type": "web_search_20250305", "name": "x"}]},
        {"top_k": "many"},
        {"stop_sequences": ["x"] * 9},
    ],
)
@pytest.mark.usefixtures("priced")
def test_a_refused_request_reaches_nobody_and_holds_nothing(
    alice: Caller, ollama: FakeOllama, asked: dict[str, Any]
) -> None:
    answer = ask(alice, **asked)

    assert answer.status_code == 400 and answer.json()["error"]["type"] == "invalid_request_error"
    assert ollama.requests == [] and not Hold.objects.exists()


# --- Wherever it breaks ---------------------------------------------------------------------------

REPLY = rendered(tokens(["Hel", "lo"], path="/api/chat", thinking=["Hm"], tool_calls=[CALL]))
# From here on the last line is whole, and only its frame is missing.
LAST_LINE_ENDS = REPLY.rindex(b"}") + 1


def offsets() -> Iterator[int]:
    """Every byte of the last line, where it matters most, and every few before."""
    last_line = REPLY.rindex(b'{"model"')
    yield from range(0, last_line, 7)
    yield from range(last_line, LAST_LINE_ENDS)


@pytest.mark.usefixtures("priced")
def test_an_answer_cut_at_any_byte_never_looks_complete(alice: Caller, ollama: FakeOllama) -> None:
    for at in offsets():
        ollama.answer("/api/chat", Wire(REPLY[:at]), Close())
        answer = ask(alice, stream=True)
        body = body_of(answer)

        assert b"message_stop" not in body and b"message_delta" not in body, at
        error = events(body)[-1] if answer.status_code == 200 else json.loads(body)
        assert error["type"] == "error", at
    assert alice.wallet.spent == 0 and not Hold.objects.filter(state="open").exists()


@pytest.mark.usefixtures("priced")
def test_an_answer_cut_after_its_last_line_is_complete(alice: Caller, ollama: FakeOllama) -> None:
    ollama.answer("/api/chat", Wire(REPLY))

    assert names(body_of(ask(alice, stream=True)))[-1] == "message_stop"
