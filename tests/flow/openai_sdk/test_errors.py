"""Errors of the gateway raise the `openai` client's exceptions."""

from typing import Any

import openai
import pytest

from billing import ledger
from billing.models import Budget, TokenUsage
from tests.fakes.script import Close, error_line, reply, tokens
from tests.flow.openai_sdk.calls import (
    SKY,
    chat,
    chat_script,
    client_of,
)
from tests.harness.callers import Caller, new_caller
from tests.harness.gateway import RunningGateway, eventually

pytestmark = pytest.mark.usefixtures("priced")


def test_an_unknown_key_raises_authentication_error(gateway: RunningGateway) -> None:
    with pytest.raises(openai.AuthenticationError) as caught:
        client_of(gateway, "olg_" + "0" * 64).models.list()
    assert caught.value.code == "invalid_api_key" and caught.value.request_id


def test_a_model_that_the_key_may_not_use_raises_permission_denied(
    gateway: RunningGateway, alice: Caller
) -> None:
    alice.key.allowed_models = ["mistral"]
    alice.key.save()

    with pytest.raises(openai.PermissionDeniedError):
        chat(client_of(gateway, alice.secret))


def test_an_unknown_model_raises_not_found(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError):
        chat(client, model="nonsuch")


def test_a_bad_request_names_its_parameter(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        chat(client, temperature="hot")
    assert caught.value.param == "temperature" and caught.value.type == "invalid_request_error"


def test_missing_credit_raises_402_and_is_not_retried(gateway: RunningGateway) -> None:
    poor = new_caller("Poor", credit="0")

    with pytest.raises(openai.APIStatusError) as caught:
        chat(client_of(gateway, poor.secret, max_retries=2))

    assert caught.value.status_code == 402 and caught.value.type == "insufficient_quota"
    assert caught.value.response.headers["x-should-retry"] == "false"


def test_a_reached_cap_raises_rate_limit_error_and_is_not_retried(
    gateway: RunningGateway, alice: Caller
) -> None:
    unit, window = Budget.Unit.TOKENS, Budget.Window.MONTH
    cap = ledger.open_budget(alice.account, unit, window)
    ledger.set_limit(cap, 1)

    with pytest.raises(openai.RateLimitError) as caught:
        chat(client_of(gateway, alice.secret, max_retries=2))

    assert caught.value.code == "cap_reached"
    assert caught.value.response.headers["x-should-retry"] == "false"
    assert caught.value.response.request.headers["x-stainless-retry-count"] == "0"


def test_an_unreachable_model_server_raises_internal_server_error(
    client: openai.OpenAI, gateway: RunningGateway
) -> None:
    gateway.ollama.down()

    with pytest.raises(openai.InternalServerError) as caught:
        chat(client)
    assert caught.value.status_code == 503 and caught.value.response.headers["retry-after"]


def test_a_failure_of_the_model_server_is_retried(gateway: RunningGateway, alice: Caller) -> None:
    gateway.ollama.answer("/api/chat", reply({"error": "runner has terminated"}, 500), times=1)
    retrying_client = client_of(gateway, alice.secret, max_retries=1)

    assert chat(retrying_client).choices[0].message.content == SKY
    assert len(gateway.ollama.calls("/api/chat")) == 2


INTERRUPTIONS = {"a crash": [error_line("unexpected EOF")], "a closed connection": [Close()]}


@pytest.mark.parametrize("interruption", INTERRUPTIONS.values(), ids=INTERRUPTIONS.keys())
def test_an_interrupted_stream_raises_api_error(
    client: openai.OpenAI, gateway: RunningGateway, interruption: list[Any]
) -> None:
    gateway.ollama.answer("/api/chat", chat_script("ab", done=False), interruption)
    gateway.ollama.answer("/api/generate", tokens("ab", done=False), interruption)
    streams = [
        chat(client, stream=True),
        client.completions.create(model="llama3", prompt="hi", stream=True),
        client.responses.create(model="llama3", input="hi", stream=True),
    ]

    for stream in streams:
        with pytest.raises(openai.APIError) as caught:
            list(stream)
        assert caught.value.code == "upstream_broke"
    eventually(lambda: TokenUsage.objects.count() == 3)
    assert not TokenUsage.objects.filter(billed=True).exists()
