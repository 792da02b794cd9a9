"""The commands in README.md work when they are pasted."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.harness.callers import Caller, set_price
from tests.harness.gateway import RunningGateway

README = (Path(__file__).resolve().parents[2] / "README.md").read_text()
CURLS = [block for block in re.findall(r"```sh\n(.*?)```", README, re.DOTALL) if "curl" in block]
MODELS = dict(re.findall(r"(MODEL|EMBED)=(smollm2\S+)", README))
[PYTHON] = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


@pytest.fixture
def gateway_with_models(gateway: RunningGateway) -> RunningGateway:
    for name in MODELS.values():
        set_price(name, "0.0001")
        gateway.ollama.models.append(name)
    return gateway


def objects(text: str) -> Iterator[Any]:
    """Yield every JSON object in a text, with or without newlines between them."""
    while text := text.lstrip():
        value, end = json.JSONDecoder().raw_decode(text)
        yield value
        text = text[end:]


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
@pytest.mark.parametrize("block", CURLS, ids=range(len(CURLS)))
def test_a_curl_command_gets_a_response(
    gateway_with_models: RunningGateway, alice: Caller, block: str
) -> None:
    env = {"GATEWAY": gateway_with_models.server.url, "KEY": alice.secret, **MODELS}
    env["PATH"] = "/usr/bin:/bin"

    result = run(["bash", "-euc", block], env)

    responses = list(objects(result.stdout))
    assert len(responses) >= block.count("curl")
    assert not any("error" in response for response in responses)


def test_the_python_snippet_prints_a_response(
    gateway_with_models: RunningGateway, alice: Caller
) -> None:
    script = PYTHON.replace("http://127.0.0.1:8000", gateway_with_models.server.url)

    result = run([sys.executable, "-c", script.replace("olg_…", alice.secret)], {})

    assert result.stdout.startswith("The sky is blue")


def run(command: list[str], env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=30, check=True)
