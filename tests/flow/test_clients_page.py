"""Each snippet of docs/clients.md runs and prints a response."""

import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.harness.callers import Caller, set_price
from tests.harness.gateway import RunningGateway

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "clients.md").read_text()
JS = ROOT / "tests" / "js"

MODEL = "smollm2:135m"


@pytest.fixture(autouse=True)
def documented_model(gateway: RunningGateway) -> None:
    set_price(MODEL, "0.0001")
    gateway.ollama.models.append(MODEL)


def snippets(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


def completed(snippet: str, gateway: RunningGateway, caller: Caller) -> str:
    with_url = snippet.replace("http://127.0.0.1:8000", gateway.server.url)
    return with_url.replace("olg_…", caller.secret)


def output_of(command: list[str], cwd: Path = ROOT) -> str:
    """Run a snippet and return its output. On failure, the assertion shows its errors."""
    result = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.parametrize("snippet", snippets("python"), ids=lambda text: text.split()[1])
def test_a_python_snippet_prints_a_response(
    gateway: RunningGateway, alice: Caller, snippet: str
) -> None:
    package = snippet.split()[1].partition(".")[0]
    if find_spec(package) is None:
        pytest.skip(f"{package} is not installed")

    output = output_of([sys.executable, "-c", completed(snippet, gateway, alice)])

    assert output.startswith("The sky is blue")


@pytest.mark.parametrize("snippet", snippets("js"), ids=range(len(snippets("js"))))
def test_a_javascript_snippet_prints_a_response(
    gateway: RunningGateway, alice: Caller, snippet: str
) -> None:
    if shutil.which("node") is None or not (JS / "node_modules").exists():
        pytest.skip("the JavaScript clients are not installed; `make test-js` installs them")

    script = completed(snippet, gateway, alice)
    output = output_of(["node", "--input-type=module", "-e", script], JS)

    assert output.startswith("The sky is blue")


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
@pytest.mark.parametrize("snippet", snippets("sh"), ids=range(len(snippets("sh"))))
def test_a_curl_snippet_prints_a_response(
    gateway: RunningGateway, alice: Caller, snippet: str
) -> None:
    assert "The sky is blue" in output_of(["bash", "-euc", completed(snippet, gateway, alice)])
