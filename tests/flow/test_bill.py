"""What an answer says it cost, what the books hold and what `/usage` shows are one figure."""

import pytest

from billing import reconciliation
from tests.conftest import Caller
from tests.fakes.ollama import FakeOllama

pytestmark = pytest.mark.usefixtures("priced")


def books_balance() -> bool:
    return not any(found for _check, found in reconciliation.differences())


def test_an_answer_says_what_it_used_and_cost(alice: Caller, ollama: FakeOllama) -> None:
    answer = alice.post("/generate", model="llama3", prompt="Why is the sky blue?")

    assert answer.status_code == 200
    assert answer.json()["response"].startswith("The sky is blue")
    assert answer.json()["usage"] == {
        "prompt_tokens": 5,
        "completion_tokens": 9,
        "total_tokens": 14,
        "cost": "0.000046",
        "currency": "USD",
    }
