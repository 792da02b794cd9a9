"""The two models: listed, shown, loaded, unloaded, pulled."""

import hashlib
from typing import Any

import ollama
import pytest

from embedded.model import find_model
from tests.servers.embedded import EMBED, MODEL, EmbeddedModelServer


def loaded(server: EmbeddedModelServer) -> list[str]:
    return [model["name"] for model in server.get("/api/ps")["models"]]


def test_a_request_without_input_loads_a_model_and_keep_alive_0_unloads_it(
    server: EmbeddedModelServer,
) -> None:
    for name, path in ((MODEL, "/api/generate"), (EMBED, "/api/embed")):
        server.post(path, model=name).read()
        assert name in loaded(server)
    (reply,) = server.lines(keep_alive=0)
    assert reply["done_reason"] == "unload" and loaded(server) == [EMBED]
    (reply,) = server.lines("/api/chat", keep_alive="5m")
    assert reply["done_reason"] == "load" and set(loaded(server)) == {MODEL, EMBED}


@pytest.mark.parametrize("path", ["/api/generate", "/api/chat"])
def test_a_request_without_a_prompt_generates_nothing(
    server: EmbeddedModelServer, path: str
) -> None:
    (reply,) = server.lines(path)
    assert (reply["done_reason"], reply.get("eval_count")) == ("load", None)


def test_tags_list_the_size_and_digest_of_the_file(server: EmbeddedModelServer) -> None:
    model, embedder = server.get("/api/tags")["models"]
    content = find_model().path.read_bytes()
    assert model["size"] == len(content)
    assert model["digest"] == hashlib.sha256(content).hexdigest() != embedder["digest"]
    assert (model["name"], model["capabilities"]) == (MODEL, ["completion"])
    assert (embedder["name"], embedder["capabilities"]) == (EMBED, ["embedding"])


def test_show_and_ps_describe_the_model(server: EmbeddedModelServer) -> None:
    details: Any = server.reply("/api/show")
    server.post("/api/generate").read()
    (running,) = [model for model in server.get("/api/ps")["models"] if model["name"] == MODEL]
    assert details["details"]["parameter_size"] == "134.5M"
    assert details["details"]["quantization_level"] == "Q4_1"
    assert details["model_info"]["llama.context_length"] == 8192
    assert running["context_length"] == 2048


@pytest.mark.parametrize("name", ["SmolLM2:135M", f"library/{MODEL}", f" {MODEL} "])
def test_a_reply_repeats_the_requested_spelling_of_a_name(
    server: EmbeddedModelServer, name: str
) -> None:
    reply = server.reply(model=name, prompt="Hi", options={"num_predict": 1})
    assert reply["model"] == name


def test_a_model_cannot_be_deleted(client: ollama.Client) -> None:
    with pytest.raises(ollama.ResponseError, match="cannot be deleted"):
        client.delete(MODEL)
    with pytest.raises(ollama.ResponseError, match="model 'x' not found"):
        client.delete("x")


def test_a_pull_succeeds_for_the_two_models_only(client: ollama.Client) -> None:
    assert [step.status for step in client.pull(MODEL, stream=True)][-1] == "success"
    with pytest.raises(ollama.ResponseError, match="file does not exist"):
        list(client.pull("llama3", stream=True))


def test_ollamas_client_lists_and_shows_the_models(client: ollama.Client) -> None:
    assert [model.model for model in client.list().models] == [MODEL, EMBED]
    details = client.show(MODEL).details
    assert details is not None and details.family == "llama"


def test_ollamas_client_chats_and_embeds(client: ollama.Client) -> None:
    messages = [{"role": "user", "content": "Say hello."}]
    options = {"temperature": 0, "num_predict": 24}
    chunks: list[Any] = list(client.chat(MODEL, messages, stream=True, options=options))
    whole = client.chat(MODEL, messages, options=options)
    assert "".join(chunk.message.content for chunk in chunks) == whole.message.content
    assert chunks[-1].prompt_eval_count == whole.prompt_eval_count
    assert len(client.embed(EMBED, "hello").embeddings[0]) == 576
