"""Requests that the embedded model server rejects, with the status and text of Ollama."""

import json
from typing import Any

import pytest

from tests.servers.embedded import EMBED, EmbeddedModelServer

CHAT, GENERATE = "/api/chat", "/api/generate"
BAD_SCHEMA = {"prompt": "a", "format": {"type": "odd"}}
REJECTED = [
    (GENERATE, {"model": "x"}, 404, "model 'x' not found"),
    (GENERATE, {"model": "smollm2"}, 404, "model 'smollm2' not found"),
    (CHAT, {"model": ""}, 400, "model is required"),
    ("/api/embed", {"model": "x"}, 404, 'model "x" not found, try pulling it first'),
    ("/api/show", {"model": "x"}, 404, "model 'x' not found"),
    ("/api/embed", {"input": [1]}, 400, "invalid input type"),
    (GENERATE, {"prompt": "a", "suffix": "b"}, 400, "does not support insert"),
    (GENERATE, {"prompt": "a", "images": ["aa"]}, 400, "not support multimodal"),
    (GENERATE, {"prompt": "a", "think": True}, 400, "does not support thinking"),
    (CHAT, {"tools": [{"type": "function"}]}, 400, "does not support tools"),
    (CHAT, {"messages": ["a"]}, 400, "each of messages must be an object"),
    (CHAT, {"messages": [{"role": "user", "content": []}]}, 400, "content must be"),
    (GENERATE, {"prompt": "a " * 3000, "truncate": False}, 400, "exceed_context_size"),
    ("/api/embed", {"input": "a"}, 501, "does not support embeddings"),
    ("/api/embeddings", {"prompt": "a"}, 501, "does not support embeddings"),
    (CHAT, {"model": EMBED}, 400, '"smollm2-embed:135m" does not support chat'),
    (GENERATE, {"model": EMBED}, 400, "does not support generate"),
    (GENERATE, {"prompt": "a", "options": {"repeat_last_n": -1}}, 400, "between 0"),
    (GENERATE, {"prompt": "a", "format": "xml"}, 500, "invalid format"),
    (GENERATE, BAD_SCHEMA, 400, "JSON schema conversion failed"),
    (GENERATE, {"prompt": "a", "top_logprobs": 21}, 400, "between 0 and 20"),
]


@pytest.mark.parametrize(("path", "fields", "status", "error"), REJECTED)
def test_an_unsupported_request_is_rejected(
    server: EmbeddedModelServer, path: str, fields: dict[str, Any], status: int, error: str
) -> None:
    response = server.post(path, **fields)
    assert response.status == status
    assert error in json.loads(response.read())["error"]


@pytest.mark.parametrize(
    ("option", "kind"),
    [
        ({"num_ctx": "8k"}, "of type integer"),
        ({"num_predict": True}, "of type integer"),
        ({"temperature": "hot"}, "of type float32"),
        ({"stop": "x"}, "of type array"),
        ({"stop": [1]}, "an array of strings"),
    ],
)
def test_an_option_of_the_wrong_type_gets_ollamas_error(
    server: EmbeddedModelServer, option: dict[str, Any], kind: str
) -> None:
    response = server.post(GENERATE, prompt="Hi", options=option)
    assert response.status == 500
    assert json.loads(response.read())["error"] == f'option "{next(iter(option))}" must be {kind}'
