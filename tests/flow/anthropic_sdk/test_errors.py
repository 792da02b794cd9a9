"""Errors of the gateway raise the `anthropic` client's exceptions."""

from collections.abc import Callable
from typing import Any

import anthropic
import pytest

from billing import ledger
from billing.models import Budget
from tests.fakes.script import Stall, reply
from tests.flow.anthropic_sdk.calls import (
    BUSY,
    CHAT,
    HELLO,
    REQUEST,
    WEATHER,
    client_of,
)
from tests.harness.callers import Caller, new_caller
from tests.harness.gateway import RunningGateway

pytestmark = pytest.mark.usefixtures("priced")


Call = Callable[[RunningGateway, Caller], Any]


def creating(**more: Any) -> Call:
    return lambda gateway, caller: client_of(gateway, caller.secret).messages.create(
        **REQUEST | more
    )


def with_script(*script: Any) -> Call:
    def call(gateway: RunningGateway, caller: Caller) -> Any:
        gateway.ollama.answer(CHAT, *script)
        return creating()(gateway, caller)

    return call


def with_a_reached_cap(gateway: RunningGateway, caller: Caller) -> Any:
    budget = ledger.open_budget(caller.account, Budget.Unit.TOKENS, Budget.Window.MONTH)
    ledger.set_limit(budget, 1)
    return creating()(gateway, caller)


def with_an_unknown_key(gateway: RunningGateway, _caller: Caller) -> Any:
    return client_of(gateway, "olg_" + "0" * 64).messages.create(**REQUEST)


def without_credit(gateway: RunningGateway, _caller: Caller) -> Any:
    return creating()(gateway, new_caller("Paul", credit="0"))


def without_scope(gateway: RunningGateway, _caller: Caller) -> Any:
    return creating()(gateway, new_caller("Ursula", scopes=["usage"]))


def with_the_model_server_down(gateway: RunningGateway, caller: Caller) -> Any:
    gateway.ollama.down()
    return creating()(gateway, caller)


ERRORS: dict[str, tuple[Call, type[anthropic.APIStatusError], str]] = {
    "no messages": (creating(messages=[]), anthropic.BadRequestError, "invalid_request_error"),
    "a call of an unknown tool": (
        creating(tools=[WEATHER], tool_choice={"type": "tool", "name": "unknown"}),
        anthropic.BadRequestError,
        "invalid_request_error",
    ),
    "a wrong key": (with_an_unknown_key, anthropic.AuthenticationError, "authentication_error"),
    "no credit": (without_credit, anthropic.APIStatusError, "billing_error"),
    "no scope": (without_scope, anthropic.PermissionDeniedError, "permission_error"),
    "no model": (creating(model="nonsuch"), anthropic.NotFoundError, "not_found_error"),
    "too large": (creating(system="x" * 100_000), anthropic.APIStatusError, "request_too_large"),
    "a cap": (with_a_reached_cap, anthropic.RateLimitError, "rate_limit_error"),
    "broken": (with_script(reply({"error": "x"}, 500)), anthropic.InternalServerError, "api_error"),
    "busy": (with_script(BUSY), anthropic.InternalServerError, "overloaded_error"),
    "down": (with_the_model_server_down, anthropic.InternalServerError, "overloaded_error"),
    "late": (with_script(Stall()), anthropic.InternalServerError, "timeout_error"),
}
STATUSES = {
    "invalid_request_error": 400,
    "authentication_error": 401,
    "billing_error": 402,
    "permission_error": 403,
    "not_found_error": 404,
    "request_too_large": 413,
    "rate_limit_error": 429,
    "api_error": 502,
    "overloaded_error": 503,
    "timeout_error": 504,
}


@pytest.mark.parametrize(("call", "kind", "name"), ERRORS.values(), ids=ERRORS)
def test_an_error_raises_its_exception_class(
    gateway: RunningGateway,
    alice: Caller,
    call: Call,
    kind: type[anthropic.APIStatusError],
    name: str,
) -> None:
    with pytest.raises(kind) as caught:
        call(gateway, alice)

    error = caught.value
    assert (error.type, error.status_code) == (name, STATUSES[name])
    assert error.error_code and error.body["request_id"] == error.request_id  # type: ignore[index]
    assert type(error) is not anthropic.APIStatusError, "the client has a class for it"


def test_count_tokens_raises_not_found(client: anthropic.Anthropic) -> None:
    with pytest.raises(anthropic.NotFoundError):
        client.messages.count_tokens(model="llama3", messages=HELLO)  # type: ignore[arg-type]
