"""The official JavaScript clients work with the gateway: node runs tests/js."""

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from billing.models import TokenUsage
from tests.fakes import behaviour
from tests.fakes.ollama import Received
from tests.fakes.script import Stall, error_line, tokens
from tests.harness.callers import Caller, new_caller
from tests.harness.gateway import RunningGateway, eventually

JS = Path(__file__).resolve().parents[1] / "js"
CALL = {"function": {"name": "weather", "arguments": {"city": "Kiel"}}}

pytestmark = [
    pytest.mark.usefixtures("priced"),
    pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed"),
    pytest.mark.skipif(
        not (JS / "node_modules").is_dir(), reason="run `make test-js`, which installs the clients"
    ),
]


def play(received: Received, models: list[str]) -> Any:
    """Choose a script by the last message, as listed in tests/js/gateway.js."""
    last = received.json["messages"][-1]["content"]
    if last == "stall":
        return [*tokens("ab", path=received.path, done=False), Stall()]
    if last == "break":
        return [*tokens("ab", path=received.path, done=False), error_line("boom")]
    if last == "call":
        return tokens(["Hm"], path=received.path, tool_calls=[CALL])
    return behaviour.answer(received, models)


@pytest.mark.parametrize("client", ["openai", "ollama", "anthropic"])
def test_the_official_client_of_javascript(
    gateway: RunningGateway, alice: Caller, olga: Caller, client: str
) -> None:
    gateway.ollama.answer("/api/chat", lambda received: play(received, gateway.ollama.models))
    env = {
        **os.environ,
        "GATEWAY_URL": gateway.server.url,
        "GATEWAY_KEY": alice.secret,
        "OPERATOR_KEY": olga.secret,
        "POOR_KEY": new_caller("Poor", credit="0").secret,
    }

    run = subprocess.run(
        ["node", "--test", f"{client}.test.js"],
        cwd=JS,
        env=env,
        capture_output=True,
        text=True,
        timeout=60,
    )

    assert run.returncode == 0, run.stdout[-5000:] + run.stderr[-2000:]
    [stalled] = [received for received in gateway.ollama.requests if b'"stall"' in received.body]
    assert stalled.left.wait(1), "the model server did not notice the disconnect"
    outcomes = TokenUsage.objects.values_list("outcome", flat=True)
    eventually(lambda: list(outcomes.all()).count("client_left") == 1)
