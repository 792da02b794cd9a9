"""The official `ollama` client works with another host and a key."""

from typing import Any

import ollama as official
import pytest

from tests.fakes.script import Stall, error_line, tokens
from tests.harness.callers import Caller
from tests.harness.gateway import RunningGateway, usage_row

pytestmark = pytest.mark.usefixtures("priced")

HELLO = [{"role": "user", "content": "hello"}]


@pytest.fixture
def client(
    gateway: RunningGateway, alice: Caller, monkeypatch: pytest.MonkeyPatch
) -> official.Client:
    return client_of(gateway, alice, monkeypatch)


@pytest.fixture
def operator(
    gateway: RunningGateway, olga: Caller, monkeypatch: pytest.MonkeyPatch
) -> official.Client:
    return client_of(gateway, olga, monkeypatch)


def client_of(
    gateway: RunningGateway, caller: Caller, monkeypatch: pytest.MonkeyPatch
) -> official.Client:
    monkeypatch.setenv("OLLAMA_API_KEY", caller.secret)
    return official.Client(host=gateway.server.url)


def test_generate(client: official.Client) -> None:
    answer = client.generate(model="llama3", prompt="Why is the sky blue?")

    assert (answer.response or "").startswith("The sky") and answer.done_reason == "stop"
    assert (answer.prompt_eval_count, answer.eval_count) == (5, 9)


def test_a_streamed_generate(client: official.Client) -> None:
    pieces: list[Any] = list(client.generate(model="llama3", prompt="Why?", stream=True))

    assert "".join(piece.response for piece in pieces).startswith("The sky")
    assert [piece.done for piece in pieces].count(True) == 1 and pieces[-1].done


def test_chat(client: official.Client) -> None:
    answer = client.chat(model="llama3", messages=HELLO)

    assert answer.message.role == "assistant" and answer.message.content


def test_a_streamed_chat(client: official.Client) -> None:
    pieces = list(client.chat(model="llama3", messages=HELLO, stream=True))

    assert "".join(piece.message.content or "" for piece in pieces).startswith("The sky")


def test_tools_and_thinking_are_relayed_in_both_directions(
    client: official.Client, gateway: RunningGateway
) -> None:
    call = {"function": {"name": "weather", "arguments": {"city": "Kiel"}}}
    gateway.ollama.answer(
        "/api/chat", tokens(["Hm"], path="/api/chat", thinking=["I must look"], tool_calls=[call])
    )
    tool = {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "Today's weather",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
        },
    }

    answer = client.chat(model="llama3", messages=HELLO, tools=[tool], think=True)

    assert answer.message.thinking == "I must look"
    [requested] = answer.message.tool_calls or []
    assert (requested.function.name, requested.function.arguments) == ("weather", {"city": "Kiel"})
    sent = gateway.ollama.requests[-1].json
    assert sent["think"] is True and sent["tools"][0]["function"]["name"] == "weather"


def test_a_schema_reaches_the_model(client: official.Client, gateway: RunningGateway) -> None:
    schema = {"type": "object", "properties": {"age": {"type": "integer"}}, "required": ["age"]}

    client.chat(model="llama3", messages=HELLO, format=schema, options={"temperature": 0})

    assert gateway.ollama.requests[-1].json["format"] == schema


def test_embed_and_the_older_embeddings(client: official.Client) -> None:
    both = client.embed(model="nomic-embed-text", input=["one", "two"])
    old = client.embeddings(model="nomic-embed-text", prompt="one")

    assert len(both.embeddings) == 2 and list(old.embedding) == list(both.embeddings[0])


def test_list_show_and_ps(client: official.Client) -> None:
    names = {model.model for model in client.list().models}
    shown = client.show("llama3")

    assert names == {"llama3:latest", "mistral:latest", "nomic-embed-text:latest"}
    assert shown.modelinfo and shown.template is None and shown.modelfile is None
    assert all(model.model in names for model in client.ps().models)


@pytest.mark.parametrize(
    ("call", "status"),
    [
        (lambda c: c.generate(model="nonsuch", prompt="x"), 404),
        (lambda c: c.chat(model="gpt-oss:cloud", messages=HELLO), 400),
        (lambda c: c.embed(model="nomic-embed-text", input="x", dimensions=-1), 200),
        (lambda c: c.show("nonsuch"), 404),
        (lambda c: c.pull("llama3"), 403),
        (lambda c: c.delete("llama3"), 403),
    ],
    ids=["unknown", "cloud", "clamped", "show unknown", "pull", "delete"],
)
def test_an_error_raises_response_error_with_its_status(
    client: official.Client, call: Any, status: int
) -> None:
    if status == 200:
        assert call(client)
        return
    with pytest.raises(official.ResponseError) as caught:
        call(client)
    assert caught.value.status_code == status and caught.value.error


def test_an_unknown_key_is_a_401(gateway: RunningGateway, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OLLAMA_API_KEY", "olg_" + "0" * 64)

    with pytest.raises(official.ResponseError) as caught:
        official.Client(host=gateway.server.url).generate(model="llama3", prompt="x")
    assert caught.value.status_code == 401


def test_an_interrupted_stream_raises(client: official.Client, gateway: RunningGateway) -> None:
    gateway.ollama.answer("/api/generate", tokens("ab", done=False), error_line("boom"))

    with pytest.raises(official.ResponseError):
        list(client.generate(model="llama3", prompt="x", stream=True))


def test_closing_a_stream_stops_the_model_server(
    client: official.Client, gateway: RunningGateway
) -> None:
    gateway.ollama.answer("/api/generate", tokens("ab", done=False), Stall())
    stream: Any = client.generate(model="llama3", prompt="x", stream=True)
    next(iter(stream))

    stream.close()

    assert gateway.ollama.requests[-1].left.wait(1)
    assert usage_row().outcome == "client_left"


def test_an_operator_pulls_and_deletes(operator: official.Client) -> None:
    steps = [progress.status for progress in operator.pull("phi3", stream=True)]
    assert steps[0] == "pulling manifest" and steps[-1] == "success"
    assert operator.pull("qwen2").status == "success"

    assert operator.delete("phi3").status == "success"

    with pytest.raises(official.ResponseError) as caught:
        operator.delete("phi3")
    assert caught.value.status_code == 404


def test_pulling_a_missing_model_is_an_error(operator: official.Client) -> None:
    with pytest.raises(official.ResponseError) as caught:
        operator.pull("nonsuch")
    assert caught.value.status_code == 404

    with pytest.raises(official.ResponseError):
        list(operator.pull("nonsuch", stream=True))
