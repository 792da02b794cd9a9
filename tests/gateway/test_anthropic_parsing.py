"""A request of Anthropic's API becomes native fields, or is rejected with the reason."""

import json
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as examples
from hypothesis import strategies as st

from gateway.dialects import ANTHROPIC, OPENAI, dialect_of
from gateway.dialects.anthropic.parsing import THINKING
from gateway.errors import BadRequest
from gateway.validation.policy import build
from tests.harness.anthropic import (
    CHAT,
    DROPPED,
    HELLO,
    LIMITS,
    PNG,
    WEATHER,
    fields,
    result,
    said,
    text,
)

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


@pytest.mark.parametrize("choice", [{"type": "x"}, "auto", 5, {}])
def test_a_malformed_choice_is_rejected(choice: Any) -> None:
    with pytest.raises(BadRequest, match="tool_choice"):
        fields(tools=[WEATHER], tool_choice=choice)


@pytest.mark.parametrize("kind", ["text_editor_20250728", "bash_20250124", "function", 5, []])
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


@pytest.mark.parametrize("kind", ["document", "search_result", "x" * 999, 5, []])
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
