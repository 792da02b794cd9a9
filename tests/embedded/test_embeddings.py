"""Vectors of the embedding model."""

import json
from typing import Any

import pytest

from tests.servers.embedded import EMBED, EmbeddedModelServer


def test_each_text_has_a_normalised_vector(server: EmbeddedModelServer) -> None:
    vectors = server.embed(["a cat", "a dog"])["embeddings"]
    assert [len(vector) for vector in vectors] == [576, 576]
    assert [sum(value**2 for value in vector) for vector in vectors] == pytest.approx([1, 1])


def test_similar_texts_have_similar_vectors(server: EmbeddedModelServer) -> None:
    texts = ["The cat sleeps.", "The kitten is sleeping.", "Stock markets fell sharply today."]
    cat, kitten, market = server.embed(texts)["embeddings"]
    similarity = [sum(a * b for a, b in zip(cat, v, strict=True)) for v in (kitten, market)]
    assert similarity[0] > similarity[1]


@pytest.mark.parametrize("fields", [{}, {"input": ""}, {"input": []}])
def test_an_empty_input_has_no_vectors(server: EmbeddedModelServer, fields: dict[str, Any]) -> None:
    assert server.reply("/api/embed", model=EMBED, **fields)["embeddings"] == []


def test_a_long_text_is_cut_unless_it_may_not_be(server: EmbeddedModelServer) -> None:
    text = "many words " * 400
    rejected = server.post("/api/embed", model=EMBED, input=text, truncate=False)
    assert 400 < server.embed(text)["prompt_eval_count"] <= 512
    assert rejected.status == 400


def test_the_old_route_returns_one_vector(server: EmbeddedModelServer) -> None:
    response = server.post("/api/embeddings", model=EMBED, prompt="a cat")
    assert len(json.loads(response.read())["embedding"]) == 576


def test_a_vector_is_shortened_and_normalised_again(server: EmbeddedModelServer) -> None:
    [vector] = server.embed("a cat", dimensions=64)["embeddings"]
    assert len(vector) == 64
    assert sum(value**2 for value in vector) == pytest.approx(1)
