"""LangChain's integrations for OpenAI and Ollama work with the gateway."""

from typing import Any

import pytest
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_ollama import ChatOllama, OllamaEmbeddings
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from pydantic import BaseModel, SecretStr

from billing.models import TokenUsage
from tests.fakes.behaviour import WORDS, vector
from tests.fakes.script import tokens
from tests.harness.callers import Caller
from tests.harness.gateway import RunningGateway, eventually

pytestmark = pytest.mark.usefixtures("priced")

SKY = "".join(WORDS)
EMBEDDER = "nomic-embed-text"
MODELS = ["ollama", "openai", "responses"]


class Age(BaseModel):
    """Somebody's age."""

    age: int


@tool
def weather(city: str) -> str:
    """Return today's weather in a city."""
    return f"rain in {city}"


def chat_model(kind: str, gateway: RunningGateway, caller: Caller) -> Any:
    if kind == "ollama":
        headers = {"Authorization": f"Bearer {caller.secret}"}
        kwargs = {"headers": headers}
        return ChatOllama(model="llama3", base_url=gateway.server.url, client_kwargs=kwargs)
    return ChatOpenAI(
        model="llama3",
        base_url=f"{gateway.server.url}/v1",
        api_key=SecretStr(caller.secret),
        use_responses_api=kind == "responses",
        stream_usage=True,
    )


def embedder(kind: str, gateway: RunningGateway, caller: Caller) -> Any:
    if kind == "ollama":
        headers = {"Authorization": f"Bearer {caller.secret}"}
        kwargs = {"headers": headers}
        return OllamaEmbeddings(model=EMBEDDER, base_url=gateway.server.url, client_kwargs=kwargs)
    return OpenAIEmbeddings(
        model=EMBEDDER,
        base_url=f"{gateway.server.url}/v1",
        api_key=SecretStr(caller.secret),
        # Without this LangChain counts tokens itself and sends them in place of the text.
        check_embedding_ctx_length=False,
    )


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest, gateway: RunningGateway, alice: Caller) -> Any:
    return chat_model(request.param, gateway, alice)


def text_of(message: Any) -> str:
    return str(message.text)


def test_a_chat(model: Any) -> None:
    answer = model.invoke("hello there")

    assert text_of(answer) == SKY
    assert answer.usage_metadata["output_tokens"] == len(WORDS)
    eventually(lambda: TokenUsage.objects.filter(outcome="complete").count() == 1)


def test_a_streamed_chat(model: Any) -> None:
    pieces = list(model.stream("hello there"))

    assert "".join(map(text_of, pieces)) == SKY and len(pieces) >= len(WORDS)
    counted = [piece.usage_metadata for piece in pieces if piece.usage_metadata]
    assert sum(one["output_tokens"] for one in counted) == len(WORDS)


def test_a_tool_call_and_its_result_reach_the_model(model: Any, gateway: RunningGateway) -> None:
    function = {"name": "weather", "arguments": {"city": "Kiel"}}
    gateway.ollama.answer(
        "/api/chat", tokens([], path="/api/chat", tool_calls=[{"function": function}]), times=1
    )
    with_tools = model.bind_tools([weather])
    first: AIMessage = with_tools.invoke("What is the weather in Kiel?")
    result: ToolMessage = weather.invoke(first.tool_calls[0])

    answer = with_tools.invoke([HumanMessage("What is the weather in Kiel?"), first, result])

    assert text_of(answer) == SKY
    *_, assistant, tool = gateway.ollama.requests[-1].json["messages"]
    assert assistant["tool_calls"][0]["function"] == {
        "name": "weather",
        "arguments": {"city": "Kiel"},
    }
    assert (tool["role"], tool["content"]) == ("tool", "rain in Kiel")


def test_structured_output(model: Any, gateway: RunningGateway) -> None:
    gateway.ollama.answer("/api/chat", tokens(['{"age":', "5}"], path="/api/chat"))

    assert model.with_structured_output(Age, method="json_schema").invoke("How old?") == Age(age=5)


@pytest.mark.parametrize("kind", ["ollama", "openai"])
def test_embeddings(gateway: RunningGateway, alice: Caller, kind: str) -> None:
    embeddings = embedder(kind, gateway, alice)

    assert embeddings.embed_query("one") == pytest.approx(vector("one"))
    assert embeddings.embed_documents(["one", "two"])[1] == pytest.approx(vector("two"))
