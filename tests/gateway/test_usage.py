"""Tokens are counted by the model server where it can be believed, and by us where it cannot."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from gateway.chunk import Chunk
from gateway.metering import CountSource, Usage
from gateway.usage import MAX_BELIEVABLE, SLACK, Tally, counts

PIECE = Chunk(text="word")
SILENT = Chunk()


def tally(*chunks: Chunk, estimate: int = 7, bound: int = 100) -> Tally:
    found = Tally(estimate, bound)
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
    usage = tally(PIECE, PIECE).final(last(5, 9))

    assert usage == Usage(5, 9, CountSource.UPSTREAM, started=True)
    assert usage.total_tokens == 14


def test_a_zero_that_was_left_out_is_zero_if_nothing_was_written() -> None:
    assert tally(SILENT).final(last(5, None)) == Usage(5, 0, CountSource.UPSTREAM, started=True)


def test_a_missing_completion_count_is_counted_here() -> None:
    usage = tally(PIECE, PIECE, SILENT).final(last(5, None))

    assert usage == Usage(5, 2, CountSource.COUNTED, started=True)


def test_a_last_chunk_without_counts_is_counted_here() -> None:
    usage = tally(PIECE, PIECE).final(last(None, None))

    assert (usage.prompt_tokens, usage.completion_tokens) == (7, 2)
    assert usage.source is CountSource.COUNTED


def test_a_missing_prompt_count_is_estimated() -> None:
    assert tally(PIECE).final(last(None, 1)) == Usage(7, 1, CountSource.ESTIMATED, started=True)


def test_nobody_writes_more_than_was_allowed() -> None:
    usage = tally(PIECE, bound=10).final(last(5, 11))

    assert usage == Usage(5, 10, CountSource.COUNTED, started=True)


def test_a_prompt_larger_than_held_is_still_what_it_is() -> None:
    assert tally(PIECE, estimate=1).final(last(5000, 1)).prompt_tokens == 5000


# --- Answers that ended early ---------------------------------------------------------------------


def test_an_answer_that_never_began_used_nothing() -> None:
    assert tally().partial() == Usage(0, 0, CountSource.COUNTED, started=False)


def test_an_answer_that_ended_early_used_its_prompt_and_what_was_written() -> None:
    found = tally(PIECE, SILENT, PIECE)

    assert found.partial() == Usage(7, 2, CountSource.COUNTED, started=True, delivered=True)
    assert found.partial(delivered=False) == Usage(7, 2, CountSource.COUNTED, started=True)


@pytest.mark.parametrize(
    "chunk", [Chunk(text="a"), Chunk(thinking="hm"), Chunk(tool_calls=[{"function": {}}])]
)
def test_text_thoughts_and_calls_are_output(chunk: Chunk) -> None:
    assert tally(chunk).produced == 1


def test_a_tally_is_full_a_few_pieces_after_its_bound() -> None:
    almost = tally(*[PIECE] * (10 + SLACK - 1), bound=10)
    assert not almost.is_full
    almost.add(PIECE)
    assert almost.is_full


# --- Whatever comes -------------------------------------------------------------------------------

CHUNKS = st.lists(st.sampled_from([PIECE, SILENT, Chunk(thinking="hm")]), max_size=30)
NATIVE = st.none() | st.integers(-5, 60) | st.booleans() | st.floats() | st.text(max_size=3)


@examples(deadline=None)
@given(CHUNKS, st.integers(0, 50), st.integers(1, 20), NATIVE, NATIVE)
def test_usage_is_never_negative_nor_beyond_the_bound(
    chunks: list[Chunk], estimate: int, bound: int, prompt: Any, completion: Any
) -> None:
    found = tally(*chunks, estimate=estimate, bound=bound)
    final = found.final(last(*counts({"prompt_eval_count": prompt, "eval_count": completion})))

    for usage in (final, found.partial()):
        assert usage.prompt_tokens >= 0
        assert 0 <= usage.completion_tokens <= bound


@examples(deadline=None)
@given(CHUNKS, st.integers(1, 20))
def test_what_is_counted_here_is_never_more_than_was_produced(
    chunks: list[Chunk], bound: int
) -> None:
    found = tally(*chunks, bound=bound)
    pieces = sum(chunk.carries_output for chunk in chunks)

    assert found.partial().completion_tokens <= pieces
    assert found.final(last(5, None)).completion_tokens <= pieces


@examples(deadline=None)
@given(CHUNKS, st.integers(0, 1000), st.integers(0, 100))
def test_a_complete_answer_has_the_model_servers_counts(
    chunks: list[Chunk], prompt: int, completion: int
) -> None:
    usage = tally(*chunks, bound=100).final(last(prompt, completion))

    assert usage == Usage(prompt, completion, CountSource.UPSTREAM, started=True)
