"""Tokens are counted by the model server where it can be believed, and by us where it cannot."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from gateway.metering import CountSource, Usage
from gateway.relay.token_counter import BEYOND_PROMPT_BOUND, SLACK, TokenCounter, tokens_in
from gateway.upstream.chunk import Chunk
from gateway.upstream.protocol import MAX_BELIEVABLE, counts

PIECE = Chunk(text="word")
SILENT = Chunk()
THOUGHT = Chunk(thinking="hm")


def counter(*chunks: Chunk, estimate: int = 7, bound: int = 100) -> TokenCounter:
    found = TokenCounter(estimate, bound)
    for chunk in chunks:
        found.add(chunk)
    return found


def last(prompt: int | None, completion: int | None) -> Chunk:
    return Chunk(done=True, prompt_tokens=prompt, completion_tokens=completion)


# --- What the model server says -------------------------------------------------------------------


def test_counts_are_read_by_their_names() -> None:
    assert counts({"prompt_eval_count": 5, "eval_count": 9}) == (5, 9)
    assert counts({"prompt_eval_count": 0, "eval_count": MAX_BELIEVABLE}) == (0, MAX_BELIEVABLE)


@pytest.mark.parametrize("count", [None, -1, 1.5, "9", True, [9], MAX_BELIEVABLE + 1, 10**400])
def test_a_count_that_cannot_be_is_none(count: Any) -> None:
    assert counts({"prompt_eval_count": count, "eval_count": count}) == (None, None)


def test_missing_counts_are_none() -> None:
    assert counts({}) == (None, None)


# --- Whole answers --------------------------------------------------------------------------------


def test_the_model_servers_counts_are_believed() -> None:
    usage = counter(PIECE, PIECE).final(last(5, 9))

    assert usage == Usage(5, 9, CountSource.UPSTREAM, started=True)
    assert usage.total_tokens == 14


def test_a_zero_that_was_left_out_is_zero_if_nothing_was_written() -> None:
    assert counter(SILENT).final(last(5, None)) == Usage(5, 0, CountSource.UPSTREAM, started=True)


def test_a_missing_completion_count_is_counted_here() -> None:
    usage = counter(PIECE, PIECE, SILENT).final(last(5, None))

    assert usage == Usage(5, 2, CountSource.COUNTED, started=True)


def test_a_last_chunk_without_counts_is_counted_here() -> None:
    usage = counter(PIECE, PIECE).final(last(None, None))

    assert (usage.prompt_tokens, usage.completion_tokens) == (7, 2)
    assert usage.source is CountSource.COUNTED


def test_a_missing_prompt_count_is_estimated() -> None:
    assert counter(PIECE).final(last(None, 1)) == Usage(7, 1, CountSource.ESTIMATED, started=True)


def test_nobody_writes_more_than_was_allowed() -> None:
    usage = counter(PIECE, bound=10).final(last(5, 11))

    assert usage == Usage(5, 10, CountSource.COUNTED, started=True)


# --- Counts that cannot be ------------------------------------------------------------------------


def bounded(*chunks: Chunk, estimate: int = 7, **facts: Any) -> TokenCounter:
    found = TokenCounter(estimate, 10_000, **facts)
    for chunk in chunks:
        found.add(chunk)
    return found


def test_a_prompt_may_be_larger_than_held_by_a_models_own_system_prompt() -> None:
    found = bounded(PIECE, prompt_bound=100)

    most = 100 + BEYOND_PROMPT_BOUND
    assert found.final(last(most, 1)) == Usage(most, 1, CountSource.UPSTREAM, started=True)
    assert not found.is_beyond(most)


@pytest.mark.parametrize("count", [100 + BEYOND_PROMPT_BOUND + 1, 20_000_000])
def test_a_prompt_count_that_cannot_be_is_replaced_by_the_bound(count: int) -> None:
    found = bounded(PIECE, prompt_bound=100)

    assert found.final(last(count, 1)) == Usage(100, 1, CountSource.COUNTED, started=True)
    assert found.is_beyond(count)


def test_a_completion_count_is_no_less_than_what_was_relayed() -> None:
    found = bounded(*[PIECE] * 1504)

    assert found.final(last(30, 4)) == Usage(30, 1504, CountSource.COUNTED, started=True)


def test_a_few_chunks_too_many_are_a_token_that_was_split() -> None:
    found = bounded(*[PIECE] * (4 + SLACK))

    assert found.final(last(30, 4)) == Usage(30, 4, CountSource.UPSTREAM, started=True)


def test_the_thinking_of_a_first_run_is_billed_once() -> None:
    """Ollama runs a thinking model twice for a format; the second run reads the first's thinking,
    and its counts are those that are told."""
    chunks = [THOUGHT] * 100 + [PIECE] * 10
    twice = bounded(*chunks, estimate=20, has_format=True)

    assert twice.final(last(125, 10)) == Usage(25, 110, CountSource.COUNTED, started=True)
    assert twice.final(last(105, 10)).prompt_tokens == 20, "not below the estimate"
    assert twice.final(last(15, 10)).prompt_tokens == 15, "not raised to the estimate"
    once = bounded(*chunks, estimate=20)
    assert once.final(last(125, 10)) == Usage(125, 110, CountSource.COUNTED, started=True)


def test_the_thinking_of_a_first_run_does_not_make_a_prompt_too_long() -> None:
    twice = bounded(*[THOUGHT] * 8000, PIECE, estimate=20, prompt_bound=100, has_format=True)

    assert twice.final(last(8090, 1)) == Usage(90, 8001, CountSource.COUNTED, started=True)


# --- Answers that ended early ---------------------------------------------------------------------


def test_an_answer_that_never_began_used_nothing() -> None:
    assert counter().partial() == Usage(0, 0, CountSource.COUNTED, started=False)


def test_an_answer_that_ended_early_used_its_prompt_and_what_was_written() -> None:
    found = counter(PIECE, SILENT, PIECE)

    assert found.partial() == Usage(7, 2, CountSource.COUNTED, started=True, delivered=True)
    assert found.partial(delivered=False) == Usage(7, 2, CountSource.COUNTED, started=True)


@pytest.mark.parametrize(
    "chunk", [Chunk(text="a"), Chunk(thinking="hm"), Chunk(tool_calls=[{"function": {}}])]
)
def test_text_thoughts_and_calls_are_output(chunk: Chunk) -> None:
    assert counter(chunk).produced == 1


def call(arguments: Any) -> Chunk:
    return Chunk(tool_calls=[{"function": {"name": "save", "arguments": arguments}}])


@pytest.mark.parametrize(
    ("chunk", "tokens"),
    [
        (Chunk(tool_calls=[{}]), 1),
        (call({}), 1),
        (call({"a": 1}), 3),  # save{"a":1}
        (call('{"a":1}'), 3),
        (call({"text": "é" * 2000}), 1004),
        (Chunk(text="Now:", thinking="hm", tool_calls=call({"a": 1}).tool_calls), 4),
        (Chunk(tool_calls=call({"a": 1}).tool_calls * 2), 6),
    ],
)
def test_a_tool_call_counts_by_its_bytes(chunk: Chunk, tokens: int) -> None:
    assert tokens_in(chunk) == tokens
    assert counter(chunk, bound=5000).partial().completion_tokens == tokens


def test_a_long_call_is_not_billed_beyond_what_was_held() -> None:
    assert counter(call({"text": "x" * 4000}), bound=100).partial().completion_tokens == 100


def test_the_bytes_of_a_call_neither_raise_a_count_nor_cut_a_response() -> None:
    found = counter(call({"text": "x" * 4000}), bound=100)

    assert found.final(last(30, 60)) == Usage(30, 60, CountSource.UPSTREAM, started=True)
    assert not found.over_limit


def test_a_tally_is_full_a_few_pieces_after_its_bound() -> None:
    almost = counter(*[PIECE] * (10 + SLACK - 1), bound=10)
    assert not almost.over_limit
    almost.add(PIECE)
    assert almost.over_limit


# --- Whatever comes -------------------------------------------------------------------------------

CHUNKS = st.lists(st.sampled_from([PIECE, SILENT, Chunk(thinking="hm")]), max_size=30)
NATIVE = st.none() | st.integers(-5, 60) | st.booleans() | st.floats() | st.text(max_size=3)


@examples(deadline=None)
@given(CHUNKS, st.integers(0, 50), st.integers(1, 20), NATIVE, NATIVE)
def test_usage_is_never_negative_nor_beyond_the_bound(
    chunks: list[Chunk], estimate: int, bound: int, prompt: Any, completion: Any
) -> None:
    found = counter(*chunks, estimate=estimate, bound=bound)
    final = found.final(last(*counts({"prompt_eval_count": prompt, "eval_count": completion})))

    for usage in (final, found.partial()):
        assert usage.prompt_tokens >= 0
        assert 0 <= usage.completion_tokens <= bound


@examples(deadline=None)
@given(CHUNKS, st.integers(1, 20))
def test_what_is_counted_here_is_never_more_than_was_produced(
    chunks: list[Chunk], bound: int
) -> None:
    found = counter(*chunks, bound=bound)
    pieces = sum(chunk.carries_output for chunk in chunks)

    assert found.partial().completion_tokens <= pieces
    assert found.final(last(5, None)).completion_tokens <= pieces


@examples(deadline=None)
@given(CHUNKS, st.integers(0, 1000), st.integers(0, 100))
def test_a_complete_response_has_the_model_servers_counts_unless_more_was_relayed(
    chunks: list[Chunk], prompt: int, completion: int
) -> None:
    relayed = sum(chunk.carries_output for chunk in chunks)
    usage = counter(*chunks, bound=100).final(last(prompt, completion))

    if relayed - completion > SLACK:
        assert usage == Usage(prompt, relayed, CountSource.COUNTED, started=True)
    else:
        assert usage == Usage(prompt, completion, CountSource.UPSTREAM, started=True)
