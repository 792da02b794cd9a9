"""Tools and items that coding agents send with every request are understood or left out."""

import json
from typing import Any

import pytest

from tests.fakes.ollama import FakeOllama
from tests.fakes.script import tokens
from tests.harness.callers import Caller

pytestmark = pytest.mark.usefixtures("priced")

RESPONSES, CHAT, MESSAGES = "/v1/responses", "/v1/chat/completions", "/v1/messages"
HELLO = [{"role": "user", "content": "hi"}]
GRAMMAR = {"type": "grammar", "syntax": "lark", "definition": "start: /.+/"}
# As `codex exec` sends them.
CODEX: list[dict[str, Any]] = [
    {"type": "function", "name": "exec_command", "strict": False, "parameters": {"type": "object"}},
    {
        "type": "namespace",
        "name": "multi_agent_v1",
        "description": "Agents",
        "tools": [{"type": "function", "name": "close_agent", "parameters": {"type": "object"}}],
    },
    {"type": "custom", "name": "apply_patch", "description": "Edit.", "format": GRAMMAR},
    {"type": "web_search", "external_web_access": True},
]


def call(name: str, **arguments: Any) -> dict[str, Any]:
    return {"function": {"name": name, "arguments": arguments}}


def model_calls(ollama: FakeOllama, *calls: dict[str, Any], **more: Any) -> None:
    ollama.answer("/api/chat", tokens([], path="/api/chat", tool_calls=calls, **more))


def sent(ollama: FakeOllama) -> dict[str, Any]:
    body: dict[str, Any] = ollama.calls("/api/chat")[-1].json
    return body


def events(stream: bytes) -> list[dict[str, Any]]:
    lines = stream.decode().splitlines()
    return [json.loads(line[6:]) for line in lines if line.startswith("data: {")]


def test_what_codex_offers_reaches_the_model_as_functions(
    alice: Caller, ollama: FakeOllama
) -> None:
    model_calls(ollama)

    response = alice.post(RESPONSES, model="llama3", input="hi", tools=CODEX, store=False)

    assert response.status_code == 200
    functions = [tool["function"] for tool in sent(ollama)["tools"]]
    names = [function["name"] for function in functions]
    assert names == ["exec_command", "multi_agent_v1.close_agent", "apply_patch"]
    assert "start: /.+/" in functions[2]["description"]
    assert [tool["type"] for tool in response.json()["tools"]] == [tool["type"] for tool in CODEX]


@pytest.mark.parametrize("stream", [False, True])
def test_calls_come_back_as_the_client_knows_its_tools(
    alice: Caller, ollama: FakeOllama, stream: bool
) -> None:
    closing = call("multi_agent_v1.close_agent", target="x")
    model_calls(ollama, closing, call("apply_patch", input="*** Begin"))

    answer = alice.post(RESPONSES, model="llama3", input="hi", tools=CODEX, stream=stream)

    if stream:
        told = events(b"".join(answer.streaming_content))
        kinds = [one["type"] for one in told]
        assert "response.custom_tool_call_input.delta" in kinds
        assert "response.custom_tool_call_input.done" in kinds
        done = next(one for one in told if one["type"] == "response.function_call_arguments.done")
        assert done["name"] == "close_agent"
        finished = [one["item"] for one in told if one["type"] == "response.output_item.done"]
        output = told[-1]["response"]["output"]
        assert finished == output
    else:
        output = answer.json()["output"]
    function, custom = output
    assert (function["namespace"], function["name"]) == ("multi_agent_v1", "close_agent")
    assert json.loads(function["arguments"]) == {"target": "x"}
    assert (custom["type"], custom["name"], custom["input"]) == (
        "custom_tool_call",
        "apply_patch",
        "*** Begin",
    )


def test_the_history_of_an_agent_reaches_the_model(alice: Caller, ollama: FakeOllama) -> None:
    history = [
        {"role": "user", "content": "hi"},
        {"type": "reasoning", "id": "rs_1", "summary": [{"type": "summary_text", "text": "Hm."}]},
        {
            "type": "function_call", "call_id": "c1", "namespace": "multi_agent_v1",
            "name": "close_agent", "arguments": "{}", "status": "completed",
        },
        {"type": "message", "role": "assistant", "content": "Closing."},
        {"type": "function_call_output", "id": "fco_1", "call_id": "c1", "output": "closed"},
        {"type": "web_search_call", "id": "ws_1", "status": "completed"},
        {"type": "custom_tool_call", "call_id": "c2", "name": "apply_patch", "input": "***"},
        {"type": "custom_tool_call_output", "call_id": "c2", "output": "ok"},
    ]  # fmt: skip

    assert alice.post(RESPONSES, model="llama3", input=history, tools=CODEX).status_code == 200

    user, called, result, patched, patch_result = sent(ollama)["messages"]
    assert user["role"] == "user"
    assert (called["thinking"], called["content"]) == ("Hm.", "Closing.")
    assert called["tool_calls"][0]["function"]["name"] == "multi_agent_v1.close_agent"
    assert (result["role"], result["tool_name"]) == ("tool", "multi_agent_v1.close_agent")
    assert patched["tool_calls"][0]["function"]["arguments"] == {"input": "***"}
    assert patch_result["tool_name"] == "apply_patch"


def test_thinking_comes_back_to_the_model_between_calls(alice: Caller, ollama: FakeOllama) -> None:
    model_calls(ollama, call("exec_command"), thinking=["Let me ", "look."])
    include = ["reasoning.encrypted_content"]
    asked: dict[str, Any] = {"model": "llama3", "tools": CODEX, "include": include}

    output = alice.post(RESPONSES, input=HELLO, **asked).json()["output"]
    result = {"type": "function_call_output", "call_id": output[1]["call_id"], "output": "x"}
    alice.post(RESPONSES, input=[*HELLO, *output, result], **asked)

    _user, called, _result = sent(ollama)["messages"]
    assert called["thinking"] == "Let me look." and called["tool_calls"]


def test_thinking_that_another_provider_encrypted_is_left_out(
    alice: Caller, ollama: FakeOllama
) -> None:
    foreign = {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "gAAAAB"}

    alice.post(RESPONSES, model="llama3", input=[*HELLO, foreign])

    assert "gAAAAB" not in str(sent(ollama)) and len(sent(ollama)["messages"]) == 1


def test_thinking_is_not_repeated_unasked(alice: Caller, ollama: FakeOllama) -> None:
    model_calls(ollama, thinking=["Hm."])

    output = alice.post(RESPONSES, model="llama3", input="hi").json()["output"]

    assert "encrypted_content" not in output[0]


def test_a_custom_tool_of_a_chat_is_called_with_its_text(alice: Caller, ollama: FakeOllama) -> None:
    model_calls(ollama, call("patch", input="***"))
    tools = [{"type": "custom", "custom": {"name": "patch"}}]

    answer = alice.post(CHAT, model="llama3", messages=HELLO, tools=tools).json()
    message = answer["choices"][0]["message"]
    called = message["tool_calls"][0]
    result = {"role": "tool", "tool_call_id": called["id"], "content": "ok"}
    again = alice.post(CHAT, model="llama3", messages=[*HELLO, message, result], tools=tools)

    assert (called["type"], called["custom"]) == ("custom", {"name": "patch", "input": "***"})
    assert message["refusal"] is None and again.status_code == 200
    assert sent(ollama)["messages"][1]["tool_calls"][0]["function"]["name"] == "patch"


def test_server_tools_and_their_blocks_are_left_out_of_a_message(
    alice: Caller, ollama: FakeOllama
) -> None:
    searched = [
        {"type": "server_tool_use", "id": "s1", "name": "web_search", "input": {"query": "x"}},
        {"type": "web_search_tool_result", "tool_use_id": "s1", "content": []},
        {"type": "text", "text": "Found."},
    ]
    messages = [*HELLO, {"role": "assistant", "content": searched}, *HELLO]
    tools = [
        {"type": "web_search_20250305", "name": "web_search", "max_uses": 5},
        {"name": "own", "input_schema": {"type": "object"}},
    ]

    answer = alice.post(MESSAGES, model="llama3", max_tokens=9, messages=messages, tools=tools)

    assert answer.status_code == 200
    assert [tool["function"]["name"] for tool in sent(ollama)["tools"]] == ["own"]
    assert sent(ollama)["messages"][1] == {"role": "assistant", "content": "Found."}


@pytest.mark.parametrize(
    "tools",
    [
        {}, "x", ["x"], [{}], [{"type": 5}], [{"type": []}], [{"type": "function"}],
        [{"type": "function", "name": []}], [{"type": "custom"}], [{"type": "namespace"}],
        [{"type": "namespace", "name": "n", "tools": {}}],
        [{"type": "namespace", "name": "n", "tools": [{"type": "function"}]}],
    ],
)  # fmt: skip
@pytest.mark.parametrize("path", [CHAT, RESPONSES])
def test_malformed_tools_are_a_400(alice: Caller, path: str, tools: Any) -> None:
    given = {"input": "hi"} if path == RESPONSES else {"messages": HELLO}

    answer = alice.post(path, model="llama3", tools=tools, **given)

    assert answer.status_code == 400 and "tools" in answer.content.decode()


def test_a_stored_item_is_rejected_with_what_to_set(alice: Caller) -> None:
    items = [{"type": "item_reference", "id": "msg_1"}]

    answer = alice.post(RESPONSES, model="llama3", input=items)

    assert answer.status_code == 400 and "Set 'store' to false" in answer.json()["error"]["message"]


def test_a_response_has_every_field_of_openais_object(alice: Caller, ollama: FakeOllama) -> None:
    answer = alice.post(RESPONSES, model="llama3", input="hi", tools=CODEX[:1]).json()

    defaults = {
        "temperature": 1.0, "top_p": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0,
        "service_tier": "default", "max_tool_calls": None, "safety_identifier": None,
        "prompt_cache_key": None, "parallel_tool_calls": True,
    }  # fmt: skip
    assert {name: answer[name] for name in defaults} == defaults and "user" not in answer
    assert answer["completed_at"] >= answer["created_at"] - 1
    assert answer["tools"][0]["description"] is None and answer["tools"][0]["strict"] is False
