"""Completions, embeddings and models with the `openai` client."""

import base64
from typing import Any

import openai
import pytest

from tests.fakes.behaviour import vector
from tests.flow.openai_sdk.calls import (
    SKY,
    sent_body,
)
from tests.harness.gateway import RunningGateway

pytestmark = pytest.mark.usefixtures("priced")


def test_a_completion_is_the_same_streamed_or_not(client: openai.OpenAI) -> None:
    whole = client.completions.create(model="llama3", prompt="Why?")
    chunks = list(
        client.completions.create(
            model="llama3", prompt="Why?", stream=True, stream_options={"include_usage": True}
        )
    )

    assert (whole.choices[0].text, whole.choices[0].finish_reason) == (SKY, "stop")
    assert "".join(chunk.choices[0].text for chunk in chunks[:-1]) == SKY
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert chunks[-1].choices == [] and chunks[-1].usage == whole.usage
    assert whole.object == chunks[0].object == "text_completion"


@pytest.mark.parametrize("encoding", [None, "base64", "float"])
def test_embeddings(client: openai.OpenAI, gateway: RunningGateway, encoding: Any) -> None:
    options = {} if encoding is None else {"encoding_format": encoding}

    response = client.embeddings.create(
        model="nomic-embed-text", input=["one", "two"], dimensions=8, **options
    )

    vectors = [item.embedding for item in response.data]
    if encoding == "base64":
        assert len(base64.b64decode(str(vectors[0]))) == 4 * 8
    else:
        assert vectors == [pytest.approx(vector("one")), pytest.approx(vector("two"))]
    assert [item.index for item in response.data] == [0, 1]
    assert response.usage.prompt_tokens == response.usage.total_tokens == 2
    assert sent_body(gateway)["dimensions"] == 8


def test_models_are_listed_and_retrieved_by_any_spelling(client: openai.OpenAI) -> None:
    listed = {model.id: model for model in client.models.list()}

    assert set(listed) == {"llama3:latest", "mistral:latest", "nomic-embed-text:latest"}
    assert client.models.retrieve("LLaMA3") == listed["llama3:latest"]
    assert listed["llama3:latest"].owned_by == "library" and listed["llama3:latest"].created
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("nonsuch")
