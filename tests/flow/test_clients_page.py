"""Every snippet of the clients page that can run here runs, and prints an answer."""

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
def the_model_of_the_page(gateway: RunningGateway) -> None:
    set_price(MODEL, "0.0001")
    gateway.ollama.models.append(MODEL)


def snippets(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


def filled(snippet: str, gateway: RunningGateway, caller: Caller) -> str:
    at_home = snippet.replace("http://127.0.0.1:8000", gateway.server.url)
    return at_home.replace("olg_…", caller.secret)


def prints(command: list[str], cwd: Path = ROOT) -> str:
    """Run a snippet and return what it printed; a failure shows what it complained of."""
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("snippet", snippets("python"), ids=lambda text: text.split()[1])
def test_a_python_snippet_prints_an_answer(
    gateway: RunningGateway, alice: Caller, snippet: str
) -> None:
    package = snippet.split()[1].partition(".")[0]
    if find_spec(package) is None:
        pytest.skip(f"{package} is not installed")

    printed = prints([sys.executable, "-c", filled(snippet, gateway, alice)])

    assert printed.startswith("The sky is blue")


@pytest.mark.parametrize("snippet", snippets("js"), ids=range(len(snippets("js"))))
def test_a_javascript_snippet_prints_an_answer(
    gateway: RunningGateway, alice: Caller, snippet: str
) -> None:
    if shutil.which("node") is None or not (JS / "node_modules").exists():
        pytest.skip("the JavaScript clients are not installed; `make test-js` installs them")

    script = filled(snippet, gateway, alice)
    printed = prints(["node", "--input-type=module", "-e", script], JS)

    assert printed.startswith("The sky is blue")


@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl here")
@pytest.mark.parametrize("snippet", snippets("sh"), ids=range(len(snippets("sh"))))
def test_a_pasted_curl_prints_an_answer(
    gateway: RunningGateway, alice: Caller, snippet: str
) -> None:
    assert "The sky is blue" in prints(["bash", "-euc", filled(snippet, gateway, alice)])
