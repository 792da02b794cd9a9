"""Revoking a key ends its running responses at once. They are settled."""

import json
import time
from collections.abc import Callable
from datetime import timedelta
from decimal import Decimal

import pytest
from django.utils import timezone

from accounts import keys
from accounts.models import ApiKey
from billing import reconciliation
from tests.fakes.script import Stall, tokens
from tests.harness.callers import Caller
from tests.harness.gateway import RunningGateway, eventually, usage_row
from tests.servers.client import RawClient
from tests.servers.gunicorn import Gunicorn

pytestmark = pytest.mark.usefixtures("priced")

# The promise is a second; a busy machine gets more before the test calls it broken.
SOON = 5.0


def revoke(key: ApiKey) -> None:
    keys.revoke(key.pk)


def expire(key: ApiKey) -> None:
    ApiKey.objects.filter(pk=key.pk).update(expiry=timezone.now() - timedelta(seconds=1))


def suspend(key: ApiKey) -> None:
    key.account.status = "suspended"
    key.account.save()


def ask(
    gateway: RunningGateway, alice: Caller, path: str = "/api/generate", **more: object
) -> RawClient:
    client = gateway.client(timeout=15)
    client.post(path, {"model": "llama3", "prompt": "hi", **more}, key=alice.secret)
    gateway.ollama.wait_for(1)
    return client


@pytest.mark.parametrize("close", [revoke, expire, suspend])
def test_a_running_response_ends_soon_after_its_key(
    gateway: RunningGateway, alice: Caller, close: Callable[[ApiKey], None]
) -> None:
    gateway.ollama.answer("/api/generate", tokens(["x"] * 3000, pause=0.01))
    with ask(gateway, alice) as client:
        client.read_head()

        close(alice.key)
        closed_at = time.monotonic()

        last = json.loads(client.read_all().splitlines()[-1])
        assert last["code"] == "key_revoked" and time.monotonic() - closed_at < SOON
    row = eventually(usage_row)
    assert (row.outcome, row.billed) == ("key_revoked", True)
    assert 0 < row.completion_tokens <= gateway.ollama.requests[0].lines_sent
    assert not any(rows for _check, rows in reconciliation.differences())


def test_a_response_without_a_first_chunk_is_not_billed(
    gateway: RunningGateway, alice: Caller
) -> None:
    gateway.ollama.answer("/api/generate", Stall())
    with ask(gateway, alice) as client:
        revoke(alice.key)

        assert client.read_head().status == 401
    assert gateway.ollama.requests[0].left.wait(SOON), (
        "the model server did not notice the disconnect"
    )
    row = usage_row()
    assert (row.outcome, row.billed, row.cost) == ("key_revoked", False, Decimal(0))


def test_responses_of_other_keys_continue(gateway: RunningGateway, alice: Caller) -> None:
    other, _secret = keys.issue(alice.key.account, name="other")
    gateway.ollama.answer("/api/generate", tokens(["x"] * 100, pause=0.02))
    with ask(gateway, alice) as client:
        revoke(other)

        assert json.loads(client.read_all().splitlines()[-1])["done"] is True


def test_a_gateway_without_its_gunicorn_configuration_checks_keys(
    gateway: RunningGateway, alice: Caller
) -> None:
    """gunicorn started without `-c config/gunicorn.py`."""
    gateway.ollama.answer("/api/generate", tokens(["x"] * 3000, pause=0.01))
    args = ["--worker-class", "gthread", "--threads", "8"]
    with Gunicorn(gateway.env, config=None, args=args) as server:
        bare = RunningGateway(server, gateway.ollama, gateway.env)
        with ask(bare, alice) as client:
            client.read_head()
            revoke(alice.key)
            assert json.loads(client.read_all().splitlines()[-1])["code"] == "key_revoked"
        assert "without -c config/gunicorn.py" in server.log()
