"""Each row of the compatibility page: its example is sent, and the result must be as documented."""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from django.test import Client

from gateway.dialects import ANTHROPIC, OLLAMA, OPENAI
from gateway.dialects.base import Dialect
from gateway.dialects.openai.dialect import COMPLETIONS, EMBEDDINGS, RESPONSES
from gateway.errors import BadRequest
from gateway.metering import Operation
from gateway.validation import policy
from gateway.validation.rules import Limits
from tests.fakes import faults
from tests.fakes.ollama import FakeOllama
from tests.harness.callers import Caller

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "compatibility.md").read_text()

HELLO = [{"role": "user", "content": "hi"}]
LIMITS = Limits(2**20, 8, 2**23, 512, 2048, 8192)

ROUTES: dict[str, tuple[Dialect, Operation, dict[str, Any]]] = {
    "/api/generate": (OLLAMA, Operation.GENERATE, {"prompt": "hi"}),
    "/api/chat": (OLLAMA, Operation.CHAT, {"messages": HELLO}),
    "/api/embed": (OLLAMA, Operation.EMBED, {"input": "hi"}),
    "/v1/chat/completions": (OPENAI, Operation.CHAT, {"messages": HELLO}),
    "/v1/completions": (COMPLETIONS, Operation.GENERATE, {"prompt": "hi"}),
    "/v1/embeddings": (EMBEDDINGS, Operation.EMBED, {"input": "hi"}),
    "/v1/responses": (RESPONSES, Operation.CHAT, {"input": "hi"}),
    "/v1/messages": (ANTHROPIC, Operation.CHAT, {"messages": HELLO, "max_tokens": 100}),
}


@dataclass(frozen=True)
class Row:
    """One row of a table of parameters."""

    route: str
    parameter: str
    example: str
    done: str


def rows() -> list[Row]:
    found: list[Row] = []
    for section in PAGE.split("\n## ")[1:]:
        title = re.search(r"`(/\S+)`", section.splitlines()[0])
        assert title, section[:40]
        for line in re.findall(r"^\| `(\w+)` \| `(.+?)` \| (.+?) \|$", section, re.MULTILINE):
            found.append(Row(title[1], *line))
    return found


def sent(row: Row, **more: Any) -> dict[str, Any]:
    """Return the body that goes to the model server for the plain request with more fields."""
    dialect, operation, plain = ROUTES[row.route]
    prompt = dialect.parse(operation, {"model": "llama3", **plain, **more})
    return policy.build(prompt, "llama3:latest", LIMITS).body


def difference(plain: dict[str, Any], body: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of a body that the plain one lacks, and the options that differ."""
    found = {name: value for name, value in body.items() if plain.get(name) != value}
    if "options" in found:
        known = plain.get("options", {})
        found["options"] = {k: v for k, v in body["options"].items() if known.get(k) != v}
    return found


@pytest.mark.parametrize("row", rows(), ids=lambda row: f"{row.route} {row.parameter} {row.done}")
def test_a_parameter_is_handled_as_documented(row: Row) -> None:
    example = {row.parameter: json.loads(row.example)}

    if row.done.startswith("rejected: "):
        with pytest.raises(BadRequest) as refusal:
            sent(row, **example)
        assert refusal.value.message == row.done.removeprefix("rejected: ")
    elif row.done in ("ignored", "shapes the response"):
        assert difference(sent(row), sent(row, **example)) == {}
    else:
        assert difference(sent(row), sent(row, **example)) == json.loads(row.done.strip("`"))


def test_every_inference_route_is_documented() -> None:
    assert {row.route for row in rows()} == set(ROUTES)


# --- Differences from Ollama ----------------------------------------------------------------------


@dataclass(frozen=True)
class Setup:
    """A customer and the model server behind the gateway."""

    alice: Caller
    ollama: FakeOllama

    def chat(self, **fields: Any) -> Any:
        asked = {"model": "llama3", "messages": HELLO, "stream": False, **fields}
        return self.alice.post("/api/chat", **asked)


def key(setup: Setup) -> None:
    answer = Client().get("/api/tags")
    assert answer.status_code == 401 and answer.json()["status"] == answer.json()["error"]
    assert "status" not in Client().get("/models").json()


def listing(setup: Setup) -> None:
    setup.ollama.models.append("unpriced:latest")
    listed = {model["name"] for model in setup.alice.get("/api/tags").json()["models"]}
    assert listed == {"llama3:latest", "mistral:latest", "nomic-embed-text:latest"}


def show(setup: Setup) -> None:
    shown = setup.alice.post("/api/show", model="llama3").json()
    assert not {"template", "system", "messages", "modelfile"} & set(shown) and shown["details"]


def operators(setup: Setup) -> None:
    assert setup.alice.post("/api/pull", model="phi3").status_code == 403
    assert setup.alice.delete("/api/delete", model="llama3").status_code == 403


def making_models(setup: Setup) -> None:
    paths = ("/api/create", "/api/copy", "/api/push")
    assert {setup.alice.post(path, model="x").status_code for path in paths} == {404}


def load(setup: Setup) -> None:
    for keep_alive, reason in ((None, "load"), (0, "unload")):
        answer = setup.chat(messages=[], keep_alive=keep_alive)
        assert answer.json()["done_reason"] == reason
    assert setup.ollama.requests == []


def embeddings(setup: Setup) -> None:
    asked = {"model": "nomic-embed-text", "input": "a b c", "options": {"num_ctx": 1}}
    assert setup.alice.post("/api/embed", **asked).json()["usage"]["prompt_tokens"] == 3


def older_embeddings(setup: Setup) -> None:
    found = setup.alice.post("/api/embeddings", model="nomic-embed-text", prompt="a b").json()
    assert found["embedding"] and found["usage"]["prompt_tokens"] == 2


def usage(setup: Setup) -> None:
    found = setup.chat().json()
    assert found["usage"]["completion_tokens"] == found["eval_count"] and found["usage"]["cost"]


def full_queue(setup: Setup) -> None:
    setup.ollama.answer("/api/chat", faults.busy())
    answer = setup.chat()
    assert answer.status_code == 503 and answer["Retry-After"]


def repetition(setup: Setup) -> None:
    setup.ollama.answer("/api/chat", faults.repeat_guard(path="/api/chat"))
    found = setup.chat().json()
    assert (found["done"], found["done_reason"]) == (True, "length")
    assert found["usage"]["completion_tokens"] > 0


def cloud(setup: Setup) -> None:
    assert setup.chat(model="llama3:cloud").status_code == 400


DIFFERENCES = {
    "Key": key,
    "Listing": listing,
    "Show": show,
    "Operators": operators,
    "Making models": making_models,
    "Load": load,
    "Embeddings": embeddings,
    "Older embeddings": older_embeddings,
    "Usage": usage,
    "Full queue": full_queue,
    "Repetition": repetition,
    "Cloud": cloud,
}


@pytest.mark.parametrize("subject", DIFFERENCES)
def test_a_difference_from_ollama_is_as_documented(
    subject: str, alice: Caller, ollama: FakeOllama, priced: Any
) -> None:
    DIFFERENCES[subject](Setup(alice, ollama))


def test_every_documented_difference_is_tested() -> None:
    section = PAGE.split("## Differences from Ollama")[1].split("\n## ")[0]
    assert set(re.findall(r"^\| ([A-Z][a-z ]+) \|", section, re.MULTILINE)) == set(DIFFERENCES)
