"""A response becomes one message of Anthropic's, or its events in order."""

import json
from typing import Any

import pytest
from django.test import RequestFactory
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from gateway.errors import GatewayError, UpstreamBroke
from gateway.http import context, error_handlers
from gateway.metering import Receipt
from gateway.upstream.chunk import Chunk
from gateway.upstream.protocol import read_chunk
from tests.harness.anthropic import (
    CALL,
    CHAT,
    RECEIPT,
    REQUEST_ID,
    USAGE,
    events,
    names,
    renderer,
)
from tests.harness.errors import KINDS

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
