"""Requests of Ollama's API and of our own REST family become native fields."""

from typing import Any

import pytest

from gateway.dialects import OLLAMA, REST, dialect_of
from gateway.dialects.base import Dialect
from gateway.dialects.fields import model_of
from gateway.errors import (
    BadRequest,
)
from gateway.metering import Operation
from gateway.validation.load_requests import is_load_request, is_unload_request, loaded
from tests.harness.native import CHAT, EMBED, GENERATE, LEGACY

# --- Which family ---------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/", "/api/chat", "/api/nowhere", "/api/"])
def test_ollamas_addresses_speak_ollama(path: str) -> None:
    assert dialect_of(path) is OLLAMA


@pytest.mark.parametrize("path", ["/generate", "/usage", "/nowhere", "/api", "//api/chat", "/apix"])
def test_other_addresses_speak_rest(path: str) -> None:
    assert dialect_of(path) is REST


# --- Reading requests -----------------------------------------------------------------------------

STREAMS = [
    (OLLAMA, GENERATE, True),
    (OLLAMA, CHAT, True),
    (OLLAMA, EMBED, False),
    (REST, GENERATE, False),
    (REST, CHAT, False),
    (REST, EMBED, False),
]
ASKED = {"prompt": "hi", "messages": [{"role": "user", "content": "hi"}], "input": "hi"}


@pytest.mark.parametrize(("dialect", "operation", "streams"), STREAMS)
def test_a_family_streams_by_default_or_not(
    dialect: Dialect, operation: Operation, streams: bool
) -> None:
    for unset in ({}, {"stream": None}):
        assert dialect.parse(operation, {"model": "m", **ASKED, **unset}).stream is streams
    assert dialect.parse(operation, {"model": "m", **ASKED, "stream": False}).stream is False


@pytest.mark.parametrize("dialect", [OLLAMA, REST, LEGACY])
@pytest.mark.parametrize("stream", ["true", 1, 0, [], {}])
def test_stream_is_true_or_false(dialect: Dialect, stream: Any) -> None:
    if dialect is LEGACY:
        assert dialect.parse(EMBED, {"model": "m", **ASKED, "stream": stream}).stream is False
    else:
        with pytest.raises(BadRequest, match="'stream'"):
            dialect.parse(GENERATE, {"model": "m", **ASKED, "stream": stream})


@pytest.mark.parametrize("dialect", [OLLAMA, REST, LEGACY])
@pytest.mark.parametrize("model", [None, "", " ", 5, True, ["llama3"], {"name": "llama3"}])
def test_a_request_names_a_model(dialect: Dialect, model: Any) -> None:
    with pytest.raises(BadRequest, match="model is required"):
        dialect.parse(EMBED, {**ASKED, "model": model})


def test_the_older_name_is_accepted_and_the_newer_wins() -> None:
    assert model_of({"name": "llama3"}) == model_of({"model": "", "name": "llama3"}) == "llama3"
    assert model_of({"model": "a", "name": "b"}) == "a"


def test_the_model_is_echoed_as_the_client_spelled_it() -> None:
    assert OLLAMA.parse(GENERATE, {"model": " LLaMA3 ", **ASKED}).model == " LLaMA3 "


LOADS = [
    (GENERATE, {}, True),
    (GENERATE, {"prompt": ""}, True),
    (GENERATE, {"prompt": None, "images": ["x"]}, True),
    (GENERATE, {"prompt": " "}, False),
    (CHAT, {"messages": []}, True),
    (CHAT, {"prompt": "hi"}, True),
    (CHAT, {"messages": [{}]}, False),
    (EMBED, {"input": []}, True),
    (EMBED, {"input": ""}, True),
    (EMBED, {"input": [""]}, False),
]


@pytest.mark.parametrize(("operation", "fields", "loads"), LOADS)
def test_a_request_without_a_prompt_only_loads(
    operation: Operation, fields: dict[str, Any], loads: bool
) -> None:
    assert is_load_request(OLLAMA.parse(operation, {"model": "m", **fields})) is loads


ODD: list[Any] = [[], {}, [0], "0" * 10_000_000, "-1", "0s1s"]


@pytest.mark.parametrize(
    ("keep_alive", "unloads"),
    [
        *((zero, True) for zero in (0, 0.0, -0.0, "0", "0s", "0m0s", "0ms", "-0s", "0.0h", ".0s")),
        *((other, False) for other in (None, False, True, 1, -1, 0.5, "", "5m", "s", "10s", "0x")),
        *((odd, False) for odd in ODD),
    ],
    ids=lambda value: repr(value)[:20],
)
def test_a_keep_alive_of_zero_unloads(keep_alive: Any, unloads: bool) -> None:
    prompt = OLLAMA.parse(GENERATE, {"model": "m", "keep_alive": keep_alive})

    assert is_unload_request(prompt) is unloads
    assert loaded(prompt, "now").fields["done_reason"] == ("unload" if unloads else "load")


@pytest.mark.parametrize(
    ("operation", "name"), [(GENERATE, "prompt"), (CHAT, "messages"), (EMBED, "input")]
)
@pytest.mark.parametrize("value", [None, "", [], 0, {}])
def test_our_own_family_wants_a_prompt(operation: Operation, name: str, value: Any) -> None:
    with pytest.raises(BadRequest, match=f"'{name}' is required"):
        REST.parse(operation, {"model": "m", name: value})


def test_our_own_family_embeds_a_prompt_as_the_original_did() -> None:
    assert REST.parse(EMBED, {"model": "m", "prompt": "hi"}).payload["input"] == "hi"
    assert REST.parse(EMBED, {"model": "m", "prompt": "no", "input": "hi"}).payload["input"] == "hi"


def test_an_embedding_cannot_be_streamed() -> None:
    with pytest.raises(BadRequest, match="cannot be streamed"):
        REST.parse(EMBED, {"model": "m", "input": "hi", "stream": True})


def test_the_older_embeddings_route_is_served_by_the_newer() -> None:
    found = LEGACY.parse(EMBED, {"model": "m", "prompt": "hi", "input": "other"})

    assert found.payload["input"] == "hi"


@pytest.mark.parametrize("asked", [5, True, ["hi"], {}])
def test_the_older_embeddings_route_takes_one_string(asked: Any) -> None:
    with pytest.raises(BadRequest, match="'prompt' must be a string"):
        LEGACY.parse(EMBED, {"model": "m", "prompt": asked})
