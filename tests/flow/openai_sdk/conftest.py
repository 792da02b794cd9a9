"""A client of OpenAI's SDK with Alice's key."""

from collections.abc import Iterator

import openai
import pytest

from tests.flow.openai_sdk.calls import (
    client_of,
)
from tests.harness.callers import Caller
from tests.harness.gateway import RunningGateway


@pytest.fixture
def client(gateway: RunningGateway, alice: Caller) -> Iterator[openai.OpenAI]:
    with client_of(gateway, alice.secret) as client:
        yield client
