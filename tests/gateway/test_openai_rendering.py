"""A response becomes an object of OpenAI's, or its chunks."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from gateway.dialects.openai.dialect import CHAT, COMPLETIONS, RESPONSES, OpenAIDialect
from gateway.errors import UpstreamBroke
from gateway.upstream.chunk import Chunk
from tests.harness.openai import (
    CALL,
    CREATED,
    TEXT,
    WRITERS,
    each_writer,
    end,
    events,
    is_complete,
    pieces_of,
    renderer,
    said,
    streamed,
    text_of,
    whole,
)


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
