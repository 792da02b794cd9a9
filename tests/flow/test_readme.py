"""The README's commands do what it says when they are pasted."""

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
def house_with_the_model(gateway: RunningGateway) -> RunningGateway:
    for name in MODELS.values():
        set_price(name, "0.0001")
        gateway.ollama.models.append(name)
    return gateway


def objects(text: str) -> Iterator[Any]:
    """Yield every JSON object in a text, with or without line ends between them."""
    while text := text.lstrip():
        found, end = json.JSONDecoder().raw_decode(text)
        yield found
        text = text[end:]


@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl here")
@pytest.mark.parametrize("block", CURLS, ids=range(len(CURLS)))
def test_a_pasted_curl_answers(
    house_with_the_model: RunningGateway, alice: Caller, block: str
) -> None:
    env = {"GATEWAY": house_with_the_model.server.url, "KEY": alice.secret, **MODELS}
    env["PATH"] = "/usr/bin:/bin"

    result = run(["bash", "-euc", block], env)

    answers = list(objects(result.stdout))
    assert len(answers) >= block.count("curl")
    assert not any("error" in answer for answer in answers)


def test_the_pasted_python_prints_an_answer(
    house_with_the_model: RunningGateway, alice: Caller
) -> None:
    script = PYTHON.replace("http://127.0.0.1:8000", house_with_the_model.server.url)

    result = run([sys.executable, "-c", script.replace("olg_…", alice.secret)], {})

    assert result.stdout.startswith("The sky is blue")


def run(command: list[str], env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=30, check=True)
