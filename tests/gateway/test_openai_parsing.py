"""A request of OpenAI's API becomes native fields, or is rejected with the reason."""

from typing import Any

import pytest

from gateway.dialects.openai.dialect import CHAT, COMPLETIONS, EMBEDDINGS, RESPONSES, OpenAIDialect
from gateway.errors import BadRequest
from tests.harness.openai import end, parse, readable, said, upstream, whole

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
    (CHAT, {"tools": [{"type": "custom"}]}, r"'tools\[0\]' must be a custom tool with a name"),
    (CHAT, {"tools": [{"type": "function"}]}, r"'tools\[0\]' must be a function tool with a name"),
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
    (RESPONSES, {"previous_response_id": "resp_1"}, "nothing is stored here"),
    (RESPONSES, {"conversation": "conv_1"}, "nothing is stored here"),
    (RESPONSES, {"store": True}, "Set 'store' to false"),
    (RESPONSES, {"background": True}, "'background'"),
    (RESPONSES, {"prompt": {"id": "p"}}, "'prompt'"),
    (RESPONSES, {"tool_choice": "required"}, "'tool_choice'"),
    (RESPONSES, {"truncation": "some"}, "'truncation'"),
    (RESPONSES, {"input": []}, "'input' must be"),
    (RESPONSES, {"input": [{"type": "reasoning"}]}, "'input' holds nothing"),
    (RESPONSES, {"input": [{"type": "item_reference"}]}, "refers to a stored item"),
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
