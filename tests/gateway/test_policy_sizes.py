"""What is held covers what the model can read."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from gateway.errors import BadRequest
from gateway.metering import Operation
from gateway.validation import policy
from gateway.validation.inference_request import InferenceRequest
from tests.harness.images import encoded, png
from tests.harness.policies import LIMITS, build


def test_a_prompt_larger_than_the_limit_is_refused() -> None:
    assert build(prompt="é" * 5_000).prompt_bound >= 10_000
    with pytest.raises(BadRequest, match="larger than 10000 bytes"):
        build(prompt="é" * 5_001)


READ = [
    ("generate", {"prompt": "日本語" * 100}, 900),
    ("generate", {"system": "x" * 500, "suffix": "y" * 500}, 1000),
    ("chat", {"messages": [{"content": "x" * 400, "thinking": "y" * 400}]}, 800),
    ("embed", {"input": ["x" * 400, "y" * 400]}, 800),
    ("chat", {"tools": [{"function": {"parameters": {"日" * 300: 1}}}]}, 900),
    ("chat", {"tools": [{"function": {"parameters": {"a": [[]] * 1000}}}]}, 3_000),
    ("chat", {"tools": [{"function": {"parameters": {"a": 10**2000}}}]}, 2_000),
    ("chat", {"tools": [{"function": {"description": "<" * 1000}}]}, 6_000),
    (
        "chat",
        {"messages": [{"tool_calls": [{"function": {"arguments": {"a": [{}] * 900}}}]}]},
        2_700,
    ),
]


@pytest.mark.parametrize(("operation", "fields", "size"), READ)
def test_no_text_is_read_that_is_not_held_for(operation: str, fields: Any, size: int) -> None:
    assert build(operation, **fields).prompt_bound >= size


def test_a_schema_is_not_read_and_not_billed() -> None:
    with_schema = build(prompt="hi", format={"enum": [12345] * 500})

    assert with_schema.prompt_bound == build(prompt="hi").prompt_bound
    assert with_schema.prompt_estimate == build(prompt="hi").prompt_estimate


ESTIMATES = [
    ("generate", {"prompt": "x" * 400}, None, 100 + policy.TEMPLATE_TOKENS_USUAL),
    ("generate", {"prompt": "x" * 400}, 110, 110),
    ("generate", {"prompt": "x" * 400}, 50, 50),
    ("chat", {"messages": [{"content": "x" * 400}] * 3}, 100, 100),
    ("embed", {"input": "x" * 400}, None, 100),
    ("embed", {"input": ["x" * 400] * 3}, 50, 150),
]


@pytest.mark.parametrize(("operation", "fields", "context", "tokens"), ESTIMATES)
def test_a_prompt_is_estimated_by_its_bytes_up_to_the_context(
    operation: str, fields: Any, context: int | None, tokens: int
) -> None:
    asked = InferenceRequest(Operation(operation), "m", False, fields)

    job = policy.build(asked, "llama3:latest", LIMITS, context=context)

    assert job.prompt_estimate == tokens
    assert job.prompt_bound == build(operation, **fields).prompt_bound, "the hold covers all of it"


def test_structures_count_towards_the_size_of_the_prompt() -> None:
    with pytest.raises(BadRequest, match="larger than"):
        build("chat", tools=[{"function": {"parameters": {"a": [[]] * 10_000}}}])


@pytest.mark.parametrize("where", ["generate", "chat"])
def test_an_image_counts_as_an_image_and_not_as_text(where: str) -> None:
    image = encoded(png() + bytes(1_900))
    fields = {"images": [image]} if where == "generate" else {"messages": [{"images": [image]}]}

    extra = build(where, **fields).prompt_bound - build(where).prompt_bound

    assert 4096 <= extra <= 4096 + 100


@examples(deadline=None)
@given(
    st.dictionaries(
        st.text(max_size=8),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.text(max_size=8),
            lambda inner: (
                st.lists(inner, max_size=5)
                | st.dictionaries(st.text(max_size=4), inner, max_size=5)
            ),
        ),
        max_size=5,
    )
)
def test_any_schema_is_held_for_by_every_byte_of_it(schema: dict[str, Any]) -> None:
    written = json.dumps(schema, ensure_ascii=False).encode("utf-8", "surrogatepass")

    assert build("chat", tools=[{"function": {"parameters": schema}}]).prompt_bound >= len(written)
