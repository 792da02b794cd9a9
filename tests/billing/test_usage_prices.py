"""`/usage` states the input and output price of each model, in the currency of the gateway."""

from typing import Any

import pytest

from billing.models import BillingConfig, ModelPrice
from tests.fakes.ollama import FakeOllama
from tests.harness.callers import Caller, set_price


@pytest.fixture
def euros(db: None, settings: Any) -> None:
    settings.CURRENCY = "EUR"
    BillingConfig.objects.update(currency="EUR")


@pytest.mark.usefixtures("ollama", "euros")
def test_usage_has_the_input_price_and_both_prices_beside_it(alice: Caller) -> None:
    set_price("llama3", "0.002", "0.004")

    usage = alice.get("/usage").json()

    assert usage["pricing"] == {"llama3:latest": "0.002"}
    assert usage["price_per_1k"] == {
        "llama3:latest": {"prompt": "0.002", "completion": "0.004", "currency": "EUR"}
    }


@pytest.mark.usefixtures("priced")
def test_usage_and_models_state_the_same_prices(alice: Caller, ollama: FakeOllama) -> None:
    models = alice.get("/models").json()["models"]

    assert models and alice.get("/usage").json()["price_per_1k"] == {
        model["name"]: model["price_per_1k"] for model in models
    }


@pytest.mark.usefixtures("ollama", "euros")
def test_billed_amount_usd_is_the_cost_in_the_currency_of_the_gateway(
    alice: Caller, priced: ModelPrice
) -> None:
    alice.post("/generate", model="llama3", prompt="Why is the sky blue?")

    usage = alice.get("/usage").json()

    assert (usage["cost"], usage["currency"]) == ("0.000046", "EUR")
    assert usage["billed_amount_usd"] == usage["cost"]
