"""A forced tool call is a tool call in every family, streamed and whole, and never half of one."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from billing.models import TokenUsage
from tests.fakes.ollama import FakeOllama
from tests.fakes.script import Reset, Sleep, tokens
from tests.harness.callers import Caller

pytestmark = pytest.mark.usefixtures("priced")

CITY = {
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
}
TIME = {
    "type": "object",
    "properties": {"zone": {"$ref": "#/$defs/Z"}},
    "$defs": {"Z": {"type": "string"}},
}
NAMED, ANY = "named", "any"


@dataclass(frozen=True)
class Family:
    """How a client family writes tools and choices, and reads calls."""

    path: str
    tool: Callable[[str, dict[str, Any]], dict[str, Any]]
    choices: dict[str, Any]
    # From a whole response: the name and the arguments of its call, or None; and why it ended.
    call: Callable[[dict[str, Any]], Any]
    reason: Callable[[dict[str, Any]], str]
    cut: str


def chat_call(response: dict[str, Any]) -> Any:
    calls = response["choices"][0]["message"].get("tool_calls") or []
    return [(one["function"]["name"], json.loads(one["function"]["arguments"])) for one in calls]


def response_call(response: dict[str, Any]) -> Any:
    calls = [item for item in response["output"] if item["type"] == "function_call"]
    return [(one["name"], json.loads(one["arguments"])) for one in calls]


def message_call(response: dict[str, Any]) -> Any:
    return [(b["name"], b["input"]) for b in response["content"] if b["type"] == "tool_use"]


FAMILIES = {
    "chat": Family(
        "/v1/chat/completions",
        lambda name, schema: {"type": "function", "function": {"name": name, "parameters": schema}},
        {NAMED: {"type": "function", "function": {"name": "weather"}}, ANY: "required"},
        chat_call,
        lambda response: str(response["choices"][0]["finish_reason"]),
        "length",
    ),
    "responses": Family(
        "/v1/responses",
        lambda name, schema: {"type": "function", "name": name, "parameters": schema},
        {NAMED: {"type": "function", "name": "weather"}, ANY: "required"},
        response_call,
        lambda response: str(response["status"]),
        "incomplete",
    ),
    "messages": Family(
        "/v1/messages",
        lambda name, schema: {"name": name, "input_schema": schema},
        {NAMED: {"type": "tool", "name": "weather"}, ANY: {"type": "any"}},
        message_call,
        lambda response: str(response["stop_reason"]),
        "max_tokens",
    ),
}
every_family = pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)


def body_of(family: Family, choice: str, tools: list[Any]) -> dict[str, Any]:
    hello = [{"role": "user", "content": "hi"}]
    text = {"input": hello} if family.path == "/v1/responses" else {"messages": hello}
    limit = {"model": "llama3", "max_tokens": 300}
    return {**limit, **text, "tools": tools, "tool_choice": family.choices[choice]}


def ask(caller: Caller, family: Family, choice: str = NAMED, **more: Any) -> Any:
    tools = [family.tool("weather", CITY), family.tool("clock", TIME)]
    return caller.post(family.path, **{**body_of(family, choice, tools), **more})


def model_writes(ollama: FakeOllama, *pieces: str, reason: str = "stop") -> None:
    ollama.answer("/api/chat", tokens(pieces, path="/api/chat", reason=reason))


def sent(ollama: FakeOllama) -> dict[str, Any]:
    """The body of the only chat that the model server got."""
    (received,) = ollama.calls("/api/chat")
    body: dict[str, Any] = received.json
    return body


@every_family
def test_a_tool_is_forced_by_its_name(alice: Caller, ollama: FakeOllama, family: Family) -> None:
    model_writes(ollama, '{"ci', 'ty": "Ki', 'el"}')

    response = ask(alice, family).json()

    assert family.call(response) == [("weather", {"city": "Kiel"})]
    assert family.reason(response) in ("tool_calls", "completed", "tool_use")
    body = sent(ollama)
    assert body["format"] == CITY and body["think"] is False and "tools" not in body
    assert "weather" in body["messages"][0]["content"] and body["messages"][0]["role"] == "system"


@every_family
def test_any_of_several_tools_is_forced(alice: Caller, ollama: FakeOllama, family: Family) -> None:
    model_writes(ollama, '{"name": "clock", "arguments": {"zone": "UTC"}}')

    response = ask(alice, family, ANY).json()

    assert family.call(response) == [("clock", {"zone": "UTC"})]
    schema = sent(ollama)["format"]
    first, second = schema["anyOf"]
    assert first["properties"] == {"name": {"const": "weather"}, "arguments": CITY}
    assert second["properties"]["arguments"]["properties"]["zone"]["$ref"] == "#/$defs/tool1_Z"
    assert schema["$defs"] == {"tool1_Z": {"type": "string"}}


@every_family
def test_the_only_tool_of_a_required_call_is_written_without_its_name(
    alice: Caller, ollama: FakeOllama, family: Family
) -> None:
    model_writes(ollama, '{"city": "Kiel"}')

    response = ask(alice, family, ANY, tools=[family.tool("weather", CITY)]).json()

    assert family.call(response) == [("weather", {"city": "Kiel"})]


@every_family
@pytest.mark.parametrize(
    "text", ["Sunny.", "", "[1]", '{"city": "Ki', '{"city": NaN}', '"city"', "{}{}"]
)
def test_what_is_no_call_is_text(
    alice: Caller, ollama: FakeOllama, family: Family, text: str
) -> None:
    model_writes(ollama, text)

    response = ask(alice, family).json()

    assert family.call(response) == []
    assert family.reason(response) in ("stop", "completed", "end_turn")


@every_family
def test_arguments_that_are_cut_by_the_limit_are_no_call(
    alice: Caller, ollama: FakeOllama, family: Family
) -> None:
    model_writes(ollama, '{"city": "Kiel"}', reason="length")

    response = ask(alice, family).json()

    assert family.call(response) == [] and family.reason(response) == family.cut


@every_family
def test_a_forced_call_is_streamed_whole(alice: Caller, ollama: FakeOllama, family: Family) -> None:
    model_writes(ollama, '{"city"', *[" "] * 60, ': "Kiel"}')

    stream = b"".join(ask(alice, family, stream=True).streaming_content).decode()

    assert stream.count("weather") >= 1 and '\\"Kiel\\"' in stream
    # Keep-alives while the arguments are written.
    assert stream.count("keep-alive") >= 2 or stream.count("event: ping") >= 3
    assert any(reason in stream for reason in ("tool_calls", "response.completed", "tool_use"))


@every_family
def test_a_forced_call_costs_what_the_model_server_counts(
    alice: Caller, ollama: FakeOllama, family: Family
) -> None:
    model_writes(ollama, '{"city"', ': "Kiel"}')

    ask(alice, family)

    row = TokenUsage.objects.get()
    assert (row.prompt_tokens, row.completion_tokens, row.outcome) == (5, 2, "complete")


@every_family
def test_a_tool_that_is_not_offered_cannot_be_forced(
    alice: Caller, ollama: FakeOllama, family: Family
) -> None:
    for tools in ([], [family.tool("other", CITY)]):
        answer = ask(alice, family, tools=tools)
        assert answer.status_code == 400 and "none of its" in answer.content.decode()
    assert not ollama.calls("/api/chat") and not TokenUsage.objects.exists()


@every_family
def test_the_bounds_of_schemas_apply_to_forced_tools(
    alice: Caller, ollama: FakeOllama, family: Family
) -> None:
    killer = {"type": "string", "pattern": "^(a{0,4000}){0,4000}$"}
    schema = {"type": "object", "properties": {"x": killer}}

    answer = ask(alice, family, tools=[family.tool("weather", schema)])

    assert answer.status_code == 400 and "pattern" in answer.content.decode()
    assert not ollama.calls("/api/chat")


def test_the_instruction_joins_the_clients_own_system_message(
    alice: Caller, ollama: FakeOllama
) -> None:
    model_writes(ollama, "{}")
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hi"}]

    ask(alice, FAMILIES["chat"], messages=messages)

    first, second = sent(ollama)["messages"]
    assert "Be brief.\n\nCall this tool:\nweather" in first["content"] and second["role"] == "user"


def test_a_required_subset_forces_one_of_it(alice: Caller, ollama: FakeOllama) -> None:
    model_writes(ollama, '{"zone": "UTC"}')
    clock = {"type": "function", "function": {"name": "clock"}}
    subset = {"mode": "required", "tools": [clock]}

    family = FAMILIES["chat"]
    response = ask(
        alice, family, tool_choice={"type": "allowed_tools", "allowed_tools": subset}
    ).json()

    assert family.call(response) == [("clock", {"zone": "UTC"})]


def test_an_optional_subset_offers_its_tools_alone(alice: Caller, ollama: FakeOllama) -> None:
    choice = {
        "type": "allowed_tools",
        "mode": "auto",
        "tools": [{"type": "function", "name": "clock"}],
    }

    ask(alice, FAMILIES["responses"], tool_choice=choice)

    assert [tool["function"]["name"] for tool in sent(ollama)["tools"]] == ["clock"]


@pytest.mark.parametrize(
    "choice",
    [
        "often", 5, [], {}, {"type": "function"}, {"type": "allowed_tools"},
        {"type": "allowed_tools", "mode": "auto", "tools": {}},
        {"type": "allowed_tools", "mode": [], "tools": []},
        {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": []}]},
        {"type": "function", "function": {"name": []}},
        {"type": "web_search"}, {"type": []},
    ],
)  # fmt: skip
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/responses"])
def test_a_malformed_choice_is_a_400(alice: Caller, path: str, choice: Any) -> None:
    family = next(one for one in FAMILIES.values() if one.path == path)

    answer = ask(alice, family, tool_choice=choice)

    assert answer.status_code == 400 and "tool_choice" in answer.content.decode()


@every_family
@pytest.mark.parametrize("depth", [70, 200, 480, 5000])
@pytest.mark.parametrize("choice", [NAMED, ANY])
def test_a_schema_that_is_nested_too_deeply_is_a_400(
    alice: Caller, ollama: FakeOllama, family: Family, depth: int, choice: str
) -> None:
    """Written as text: Python's own encoder gives up earlier than its parser."""
    body = body_of(family, choice, [family.tool("weather", {"x": "DEEP"}), family.tool("o", TIME)])
    deep = '{"x":' * depth + "1" + "}" * depth
    text = json.dumps(body).replace('"DEEP"', deep)

    answer = alice.client.post(
        family.path, text, content_type="application/json", headers=alice.headers
    )

    assert answer.status_code == 400 and "nested" in answer.content.decode()
    assert not ollama.calls("/api/chat")


@every_family
def test_a_forced_stream_that_breaks_has_delivered_nothing_and_costs_nothing(
    alice: Caller, ollama: FakeOllama, family: Family
) -> None:
    """The client gets the arguments at the end, so no token of them was delivered before."""
    written = tokens(["a"] * 200, path="/api/chat", done=False)
    ollama.answer("/api/chat", [*written, Sleep(0.3), Reset()])

    stream = b"".join(ask(alice, family, stream=True).streaming_content).decode()

    row = TokenUsage.objects.get()
    assert (row.outcome, row.billed) == ("upstream_broke", False)
    ends = ('"finish_reason":"', "response.completed", "message_stop")
    assert "error" in stream and not any(end in stream for end in ends)
