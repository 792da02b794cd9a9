"""Every row of the compatibility page is sent, and what it says must happen."""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from gateway import policy
from gateway.dialects import ANTHROPIC, OLLAMA, OPENAI
from gateway.dialects.base import Dialect
from gateway.dialects.openai.dialect import COMPLETIONS, EMBEDDINGS, RESPONSES
from gateway.errors import BadRequest
from gateway.prompt import Operation
from gateway.rules import Limits

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
    """One line of the page."""

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
    """Return what goes to the model server for the route's plain request and some more."""
    dialect, operation, plain = ROUTES[row.route]
    prompt = dialect.parse(operation, {"model": "llama3", **plain, **more})
    return policy.build(prompt, "llama3:latest", LIMITS).body


def difference(plain: dict[str, Any], body: dict[str, Any]) -> dict[str, Any]:
    """Return what a body has that the plain one has not; of options only those that differ."""
    found = {name: value for name, value in body.items() if plain.get(name) != value}
    if "options" in found:
        known = plain.get("options", {})
        found["options"] = {k: v for k, v in body["options"].items() if known.get(k) != v}
    return found


@pytest.mark.parametrize("row", rows(), ids=lambda row: f"{row.route} {row.parameter} {row.done}")
def test_the_page_says_what_is_done(row: Row) -> None:
    example = {row.parameter: json.loads(row.example)}

    if row.done.startswith("refused: "):
        with pytest.raises(BadRequest) as refusal:
            sent(row, **example)
        assert refusal.value.message == row.done.removeprefix("refused: ")
    elif row.done in ("dropped", "shapes the answer"):
        assert difference(sent(row), sent(row, **example)) == {}
    else:
        assert difference(sent(row), sent(row, **example)) == json.loads(row.done.strip("`"))


def test_every_route_where_a_model_answers_is_on_the_page() -> None:
    assert {row.route for row in rows()} == set(ROUTES)
