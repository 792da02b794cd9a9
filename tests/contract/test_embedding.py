"""Facts about embeddings."""

from typing import Any

import pytest

from tests.contract.server import Server

pytestmark = pytest.mark.once  # It needs no database.


def test_text_model(server: Server, chat: str) -> None:
    """A text model does not embed: 501."""
    found = server.post("/api/embed", model=chat, input="hi")
    assert found.status_code == 501 and "embed" in found.json()["error"]


@pytest.mark.parametrize("path", ["/api/generate", "/api/chat"])
def test_embedding_model_writes_nothing(server: Server, embedding: str, path: str) -> None:
    """An embedding model refuses to generate and to chat with 400."""
    said = [{"role": "user", "content": "hi"}]
    status, text = server.refusal(path, model=embedding, prompt="hi", messages=said)
    assert status == 400 and text.endswith(f"does not support {path.rsplit('/', 1)[-1]}")


def test_vectors(server: Server, embedding: str) -> None:
    """Each text has a vector of length one, and the count is that of all texts."""
    found = server.post("/api/embed", model=embedding, input=["a cat", "a dog"]).json()
    one = server.post("/api/embed", model=embedding, input="a cat").json()
    assert len(found["embeddings"]) == 2 and len(one["embeddings"]) == 1
    assert sum(number**2 for number in one["embeddings"][0]) == pytest.approx(1, abs=1e-3)
    assert found["prompt_eval_count"] == 2 * one["prompt_eval_count"]


@pytest.mark.parametrize("given", [{}, {"input": ""}, {"input": []}], ids=["none", "text", "list"])
def test_nothing_to_embed(server: Server, embedding: str, given: dict[str, Any]) -> None:
    """Nothing to embed is 200 without vectors and without a count."""
    found = server.post("/api/embed", model=embedding, **given)
    assert found.json()["embeddings"] == [] and "prompt_eval_count" not in found.json()


def test_empty_text_in_a_list(server: Server, embedding: str) -> None:
    """An empty text in a list is 400 "cannot be truncated further", without a BOS token."""
    found = server.post("/api/embed", model=embedding, input=["a", ""])
    if found.status_code == 200:
        pytest.skip("the EMBEDDING model has a BOS token")
    assert found.status_code == 400
    assert found.json()["error"].endswith("cannot be truncated further")


def test_input_types(server: Server, embedding: str) -> None:
    """Numbers as input are 400 "invalid input type"."""
    found = server.refusal("/api/embed", model=embedding, input=[1, 2])
    assert found == (400, "invalid input type")


def test_dimensions(server: Server, embedding: str) -> None:
    """dimensions cuts a vector and makes it of length one again."""
    found = server.post("/api/embed", model=embedding, input="a cat", dimensions=4).json()
    [vector] = found["embeddings"]
    assert len(vector) == 4 and sum(n**2 for n in vector) == pytest.approx(1, abs=1e-3)


def test_dimensions_below_zero(server: Server, embedding: str) -> None:
    """dimensions -1 is ignored."""
    asked = {"model": embedding, "input": "a cat"}
    full, odd = (
        server.post("/api/embed", **asked, **more).json()["embeddings"][0]
        for more in ({}, {"dimensions": -1})
    )
    assert len(full) == len(odd)


def test_long_text(server: Server, embedding: str) -> None:
    """A long text is cut; with truncate: false it is 400 "exceeds the context length"."""
    text = " ".join(["word"] * 20_000)
    cut = server.post("/api/embed", model=embedding, input=text)
    if cut.status_code == 200 and cut.json()["prompt_eval_count"] >= 20_000:
        pytest.skip("the context of the EMBEDDING model is too long to fill")
    assert cut.status_code == 200
    status, said = server.refusal("/api/embed", model=embedding, input=text, truncate=False)
    assert status == 400 and said == "the input length exceeds the context length"


def test_older_route(server: Server, embedding: str) -> None:
    """/api/embeddings gives one vector and never a count."""
    found = server.post("/api/embeddings", model=embedding, prompt="a cat").json()
    assert set(found) == {"embedding"} and found["embedding"]


def test_older_route_and_case(server: Server, embedding: str) -> None:
    """/api/embeddings looks a name up with regard to case, /api/embed without."""
    name = embedding.upper()
    assert server.post("/api/embed", model=name, input="a").status_code == 200
    assert server.post("/api/embeddings", model=name, prompt="a").status_code == 404
