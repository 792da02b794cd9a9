"""Large responses that are not streamed: what they cost a worker and its other clients."""

import json
import random
from collections.abc import Iterator
from typing import Any

import pytest
import requests

from tests.fakes.ollama import Received
from tests.fakes.script import CREATED_AT, Raw, Step, reply, tokens
from tests.faults.conftest import RunningGateway, figure, growing_less_than, in_parallel, started
from tests.faults.test_hostile_bodies import listening
from tests.harness.callers import set_price

TOKENS, TOP, TEXTS, NUMBERS = 8192, 20, 512, 4096


@pytest.fixture(scope="module")
def running(django_db_setup: None, django_db_blocker: Any) -> Iterator[RunningGateway]:
    more: dict[str, Any] = {
        "GATEWAY_WORKERS": "1",
        "UPSTREAM_TOTAL_SECONDS": "120",
        "CLIENT_SECONDS": "60",
    }
    with started(**more) as gateway:
        yield gateway


def tokens_with_probabilities() -> list[Step]:
    top = [{"token": f" word{n}", "logprob": -n / 7} for n in range(TOP)]
    line = {
        "model": "llama3",
        "created_at": CREATED_AT,
        "message": {"role": "assistant", "content": " word0"},
        "done": False,
        "logprobs": [{**top[0], "top_logprobs": top}],
    }
    many = (json.dumps(line) + "\n").encode() * 64
    return [*[Raw(many)] * (TOKENS // 64), *tokens([], path="/api/chat", count=TOKENS)]


LINES = tokens_with_probabilities()
SIXTEEN = [[round(random.uniform(-0.1, 0.1), 18) for _ in range(NUMBERS)] for _ in range(16)]
PARTS = {n: json.dumps({"embeddings": SIXTEEN[:n], "prompt_eval_count": n}) for n in range(1, 17)}


def vectors(received: Received) -> list[Step]:
    return reply(PARTS[len(received.json["input"])])


def ask(gateway: RunningGateway, key: str, path: str, body: dict[str, Any]) -> tuple[int, bytes]:
    headers = {"Authorization": f"Bearer {key}"}
    response = requests.post(gateway.url + path, json=body, headers=headers, timeout=120)
    return response.status_code, response.content


LOGPROBS = {"logprobs": True, "top_logprobs": TOP}
SAID = {"model": "llama3", "messages": [{"role": "user", "content": "hi"}]}
WHOLE = {
    "ollama": (
        "/api/chat",
        {**SAID, **LOGPROBS, "stream": False, "options": {"num_predict": TOKENS}},
    ),
    "openai": ("/v1/chat/completions", {**SAID, **LOGPROBS, "max_tokens": TOKENS}),
}


@pytest.mark.parametrize(("at_once", "megabytes"), [(1, 48), (4, 150)])
@pytest.mark.parametrize("family", WHOLE)
def test_a_whole_response_takes_little_more_than_its_body(
    gateway: RunningGateway, key: str, family: str, at_once: int, megabytes: int
) -> None:
    gateway.ollama.answer("/api/chat", *LINES)
    path, body = WHOLE[family]
    what = f"{at_once} × {TOKENS} tokens with {TOP} logprobs, {family}"
    ask(gateway, key, path, SAID | {"stream": False})

    with growing_less_than(megabytes, gateway, what):
        told = in_parallel([key] * at_once, lambda one: ask(gateway, one, path, body), seconds=120)

    figure(f"{what}: {len(told[0][1])} bytes")
    assert [status for status, _ in told] == [200] * at_once
    assert all(one[1].count(b'"top_logprobs"') == TOKENS for one in told)


ENCODINGS = {
    "numbers": ("/api/embed", {}),
    "openai": ("/v1/embeddings", {"encoding_format": "float"}),
    "base64": ("/v1/embeddings", {"encoding_format": "base64"}),
}


@pytest.mark.parametrize("at_once", [1, 4])
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_embeddings_take_little_more_than_their_body(
    gateway: RunningGateway, key: str, encoding: str, at_once: int
) -> None:
    set_price("nomic-embed-text", "0.001")
    path, more = ENCODINGS[encoding]
    body = {"model": "nomic-embed-text", "input": ["x"] * TEXTS, **more}
    what = f"{at_once} × {TEXTS} texts of {NUMBERS} numbers, {encoding}"

    with listening(gateway, key) as other, growing_less_than(190, gateway, what):
        gateway.ollama.answer("/api/embed", vectors)
        told = in_parallel([key] * at_once, lambda one: ask(gateway, one, path, body), seconds=120)

    statuses = sorted(status for status, _ in told)
    figure(f"{what}: longest gap {other.longest:.2f} s, {statuses}, {len(told[0][1])} bytes")
    assert statuses[0] == 200 and set(statuses) <= {200, 503}
