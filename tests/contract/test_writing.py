"""Facts about text, chunks, counts and the end of a response."""

import time
from typing import Any

import pytest

from tests.contract.server import Server
from tests.fakes import faults
from tests.fakes.ollama import FakeOllama

pytestmark = pytest.mark.once  # It needs no database.

HELLO = [{"role": "user", "content": "Why is the sky blue?"}]
SHORT = {"temperature": 0, "num_predict": 8}
NUMBERS = ("prompt_eval_count", "eval_count", "total_duration", "load_duration", "eval_duration")
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}


@pytest.mark.parametrize("path", ["/api/generate", "/api/chat"])
def test_stream_by_default(server: Server, chat: str, path: str) -> None:
    """generate and chat stream by default: NDJSON, and the last line is done with all counts."""
    found = server.post(path, model=chat, prompt="hi", messages=HELLO, options=SHORT)
    assert found.headers["Content-Type"] == "application/x-ndjson"
    lines = server.lines(path, model=chat, prompt="hi", messages=HELLO, options=SHORT)
    assert [line["done"] for line in lines] == [False] * (len(lines) - 1) + [True]
    assert all(type(lines[-1][name]) is int for name in NUMBERS)
    assert not any(name in line for line in lines[:-1] for name in NUMBERS)


@pytest.mark.parametrize("path", ["/api/generate", "/api/chat"])
def test_whole_and_streamed(server: Server, chat: str, path: str) -> None:
    """A response has the same text and counts, streamed or not."""
    asked = {"model": chat, "prompt": "hi", "messages": HELLO, "options": SHORT | {"seed": 1}}
    lines, whole = server.lines(path, **asked), server.whole(path, **asked)
    assert "".join(map(text_of, lines)) == text_of(whole)
    counts = [(one["prompt_eval_count"], one["eval_count"]) for one in (lines[-1], whole)]
    assert counts[0] == counts[1]


def text_of(line: dict[str, Any]) -> str:
    text: str = line["response"] if "response" in line else line["message"]["content"]
    return text


def test_model_is_echoed(server: Server, chat: str) -> None:
    """`model` of a chunk is the name as the client wrote it."""
    name = chat.removesuffix(":latest").upper()
    found = server.whole("/api/generate", model=name, prompt="hi", options=SHORT)
    assert found["model"] == name


def test_limit(server: Server, chat: str) -> None:
    """num_predict is observed, and the reason is then "length"."""
    options = {"temperature": 0, "num_predict": 3}
    found = server.whole("/api/chat", model=chat, messages=HELLO, options=options)
    assert (found["eval_count"], found["done_reason"]) == (3, "length")


def test_limit_of_zero(server: Server, chat: str) -> None:
    """num_predict 0 is no limit if rendered, and one token if native."""
    sock = server.open("/api/chat", model=chat, messages=HELLO, options={"num_predict": 0})
    with sock, sock.makefile("rb") as reader:
        chunks = 0
        for line in reader:
            chunks += b'"done":false' in line.replace(b" ", b"")
            if chunks > 3 or b'"done":true' in line.replace(b" ", b""):
                break
    assert chunks <= 1 if server.is_native(chat) else chunks > 1


def test_stop_string(server: Server, chat: str) -> None:
    """A stop string ends the response before it, and the reason is "stop"."""
    asked = {"model": chat, "messages": HELLO}
    free = text_of(server.whole("/api/chat", **asked, options=SHORT))
    word = free.split()[2]
    cut = server.whole("/api/chat", **asked, options=SHORT | {"stop": [word]})
    assert cut["done_reason"] == "stop" and text_of(cut) == free[: free.index(word)]


def test_context_of_generate(server: Server, chat: str) -> None:
    """The last line of generate holds `context`, unless raw."""
    asked = {"model": chat, "prompt": "hi", "options": SHORT}
    assert server.whole("/api/generate", **asked)["context"]
    assert "context" not in server.whole("/api/generate", raw=True, **asked)


def test_format_is_no_prompt(server: Server, chat: str) -> None:
    """A format adds nothing to the prompt's count."""
    asked = {"model": chat, "messages": HELLO, "options": SHORT}
    schema = SCHEMA | {"description": "x" * 1000}
    counts = {
        server.whole("/api/chat", **asked, **more)["prompt_eval_count"]
        for more in ({}, {"format": schema})
    }
    assert len(counts) == 1


def test_cached_prompt(server: Server, chat: str) -> None:
    """A prompt found in the cache counts in full, and is read much faster."""
    text = f"{time.time_ns()} " + " ".join(f"n{n}" for n in range(60))
    said = [{"role": "user", "content": text}]
    asked = {"model": chat, "messages": said, "options": {"num_predict": 1}}
    server.load(chat)
    first, second = (server.whole("/api/chat", **asked) for _ in range(2))
    assert first["prompt_eval_count"] == second["prompt_eval_count"] > 60
    assert second["prompt_eval_duration"] < first["prompt_eval_duration"] / 2


# --- Ends without done ----------------------------------------------------------------------------

REPEATING = [
    {"role": "user", "content": "Say it again and again."},
    {"role": "assistant", "content": " a" * 100},
    {"role": "user", "content": "Say it again and again."},
]


def test_repeat_guard(server: Server, chat: str) -> None:
    """A rendered model that repeats itself is ended after 31 equal chunks: no done, no counts, no error. A native one is not."""  # noqa: E501
    options = {"temperature": 0, "num_predict": 120}
    lines = server.lines("/api/chat", model=chat, messages=REPEATING, options=options)
    texts = [text_of(line).strip() for line in lines]
    if server.is_native(chat):
        assert lines[-1]["done"] and lines[-1]["eval_count"]
        return
    if lines[-1]["done"]:
        pytest.skip("the model did not repeat itself")
    assert len(texts) >= 31 and len(set(texts[-31:])) == 1
    assert "error" not in lines[-1] and "eval_count" not in lines[-1]


def test_repeat_guard_of_whole(server: Server, chat: str) -> None:
    """The same without streaming is 200 with the text and done: false."""
    options = {"temperature": 0, "num_predict": 120}
    found = server.whole("/api/chat", model=chat, messages=REPEATING, options=options)
    if server.is_native(chat):
        assert found["done"]
    elif found["done"]:
        pytest.skip("the model did not repeat itself")
    else:
        assert text_of(found) and "eval_count" not in found


def test_repeat_guard_of_generate(server: Server, chat: str) -> None:
    """generate has the guard for native models too."""
    prompt = "Go on with: " + " a" * 100
    options = {"temperature": 0, "num_predict": 120}
    lines = server.lines("/api/generate", model=chat, prompt=prompt, options=options)
    if lines[-1]["done"]:
        pytest.skip("the model did not repeat itself")
    assert len(lines) >= 31


@pytest.mark.scripted
def test_clean_end(server: Server, fake: FakeOllama, chat: str) -> None:
    """A runner that closes its stream early ends the response cleanly, without done."""
    fake.answer("/api/chat", faults.clean_end(["one", " two"], path="/api/chat", model=chat))
    lines = server.lines("/api/chat", model=chat, messages=HELLO)
    assert [line["done"] for line in lines] == [False, False]


@pytest.mark.scripted
def test_crash(server: Server, fake: FakeOllama, chat: str) -> None:
    """A crash of llama-server is an error line, and a clean end."""
    native = server.is_native(chat)
    fake.answer("/api/chat", faults.crash(native=native, path="/api/chat", model=chat))
    lines = server.lines("/api/chat", model=chat, messages=HELLO)
    assert lines[-1]["error"].startswith("an error was encountered while running the model")
    assert set(lines[-1]) == {"error"} and not lines[-2]["done"]


@pytest.mark.scripted
def test_crash_of_whole(server: Server, fake: FakeOllama, chat: str) -> None:
    """A crash of llama-server is 500 if the response is not streamed."""
    fake.answer("/api/chat", faults.crash_of_whole())
    status, text = server.refusal("/api/chat", model=chat, messages=HELLO, stream=False)
    assert status == 500 and text.endswith("unexpected EOF")


# --- Thinking -------------------------------------------------------------------------------------


def test_thinking(server: Server, thinking: str) -> None:
    """A model that can think does so by default, before its text, and `think: false` stops it."""
    asked = {
        "model": thinking,
        "messages": HELLO,
        "options": {"temperature": 0, "num_predict": 200},
    }
    lines = server.lines("/api/chat", **asked)
    thought = ["thinking" in line["message"] for line in lines if any(line["message"].values())]
    if not any(thought):
        pytest.skip("the model did not think")
    assert thought[0] and not any(
        "thinking" in line["message"] for line in server.lines("/api/chat", **asked, think=False)
    )


def test_two_passes(server: Server, thinking: str) -> None:
    """Thinking with a format takes two passes: the thinking is counted as prompt, not as output."""
    asked = {"model": thinking, "messages": HELLO, "think": True}
    options = {"temperature": 0, "num_predict": 200}
    plain = server.lines("/api/chat", **asked, options=options)
    lines = server.lines("/api/chat", **asked, options=options, format=SCHEMA)
    if server.is_native(thinking):
        pytest.skip("the THINKING model is native")
    if not any(line["message"].get("content") for line in lines if "message" in line):
        pytest.skip("the model did not finish its thinking")
    thoughts = sum("thinking" in line["message"] for line in lines)
    if not thoughts:
        pytest.skip("the model did not think")
    assert lines[-1]["prompt_eval_count"] > plain[-1]["prompt_eval_count"]
    assert lines[-1]["eval_count"] < len(lines) - 1


def test_bad_schema_after_thinking(server: Server, thinking: str) -> None:
    """With thinking a bad schema fails after it: an error line in the stream, 400 when whole."""
    asked = {"model": thinking, "messages": HELLO, "format": {"type": "nonsuch"}, "think": True}
    if server.is_native(thinking):
        pytest.skip("the THINKING model is native")
    options = {"temperature": 0, "num_predict": 200}
    found = server.post("/api/chat", **asked, options=options)
    if found.status_code == 400:
        pytest.skip("the model did not think")
    lines = server.lines("/api/chat", **asked, options=options)
    if "error" not in lines[-1]:
        pytest.skip("the model did not finish its thinking")
    assert "thinking" in lines[0]["message"] and "JSON schema" in lines[-1]["error"]
    status, text = server.refusal("/api/chat", **asked, options=options, stream=False)
    assert status == 400 and "JSON schema" in text


# --- Tools ----------------------------------------------------------------------------------------

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Return the weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
        },
    },
}
CALL = [{"role": "user", "content": "Call get_weather for the city Paris."}]


def calls_of(line: dict[str, Any]) -> list[dict[str, Any]]:
    return line.get("message", {}).get("tool_calls") or []


def test_tool_call(server: Server, tools: str) -> None:
    """A rendered model's tool call comes whole in a chunk before done, a native one's in the done line."""  # noqa: E501
    options = {"temperature": 0, "num_predict": 200}
    lines = server.lines("/api/chat", model=tools, messages=CALL, tools=[WEATHER], options=options)
    places = [number for number, line in enumerate(lines) if calls_of(line)]
    if not places:
        pytest.skip("the model called no tool")
    if server.is_native(tools):
        assert places == [len(lines) - 1] and lines[-1]["eval_count"]
    else:
        assert places[-1] < len(lines) - 1
    assert isinstance(calls_of(lines[places[0]])[0]["function"]["arguments"], dict)


def test_tool_call_id(server: Server, tools: str) -> None:
    """A rendered tool call's id is call_ and 8 characters, a native one's 32 letters and digits."""
    options = {"temperature": 0, "num_predict": 200}
    found = server.whole("/api/chat", model=tools, messages=CALL, tools=[WEATHER], options=options)
    if not calls_of(found):
        pytest.skip("the model called no tool")
    call_id = calls_of(found)[0]["id"]
    if server.is_native(tools):
        assert len(call_id) == 32 and call_id.isalnum()
    else:
        assert call_id.startswith("call_") and len(call_id) == len("call_") + 8
