"""`make run`: from nothing to a real answer, again and fast, and nothing left behind."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.flow.conftest import eventually

ROOT = Path(__file__).resolve().parents[2]

pytestmark = [
    pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl here"),
    pytest.mark.once,  # It brings its own database.
]
pytest.importorskip("xllamacpp", reason="the embedded engine's wheels are not installed")


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


@pytest.fixture
def home(tmp_path: Path) -> dict[str, str]:
    """The environment of a machine where nothing was set up yet."""
    kept = {k: v for k, v in os.environ.items() if k not in ("SECRET_KEY", "DATABASE_POOL_SIZE")}
    return {
        **kept,
        "DJANGO_SETTINGS_MODULE": "config.settings",
        "ENV_FILE": str(tmp_path / ".env"),
        "DATABASE_URL": f"sqlite:///{tmp_path}/db.sqlite3",
        "PORT": str(free_port()),
        "OLLAMA_BASE": f"http://127.0.0.1:{free_port()}",
    }


@contextmanager
def run(home: dict[str, str], log: Path) -> Iterator[str]:
    """Run it as make does, and yield what it printed once it is ready; then press Ctrl-C."""
    with log.open("wb") as out:
        running = subprocess.Popen(
            [sys.executable, "-m", "config.run"], cwd=ROOT, env=home, stdout=out, stderr=out
        )
    try:
        eventually(lambda: "Ctrl-C stops" in log.read_text() or running.poll() is not None, 60)
        yield log.read_text()
    finally:
        running.send_signal(signal.SIGINT)
        assert running.wait(20) == 0, log.read_text()


def printed(what: str, text: str) -> str:
    found = re.search(rf"^  {what} +(.+)$", text, re.MULTILINE)
    assert found, text
    return found[1]


def listens(port: str | int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", int(port))) == 0


def test_a_newcomer_pastes_a_curl_and_a_model_answers(home: dict[str, str], tmp_path: Path) -> None:
    with run(home, tmp_path / "log") as text:
        curl = text[text.index("  curl") : text.index("Ctrl-C")]
        answer = json.loads(subprocess.check_output(["bash", "-c", curl], text=True, timeout=240))
        assert answer["response"].strip() and answer["usage"]["completion_tokens"] > 0
        login, key = printed("Admin", text), printed("Key", text)
        assert re.search(r"admin / \S{12,}", login) and key.startswith("olg_")

    assert not listens(home["PORT"]) and not listens(home["OLLAMA_BASE"].rpartition(":")[2])


def test_a_second_run_keeps_everything(home: dict[str, str], tmp_path: Path) -> None:
    with run(home, tmp_path / "first") as text:
        key = printed("Key", text)

    with run(home, tmp_path / "second") as text:
        assert printed("Key", text) == key
        assert "the password you have" in printed("Admin", text)


def test_a_taken_port_is_one_clear_line(home: dict[str, str], tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", int(home["PORT"]))):
        result = subprocess.run(
            [sys.executable, "-m", "config.run"],
            cwd=ROOT,
            env=home,
            capture_output=True,
            text=True,
            timeout=60,
        )
    assert result.returncode == 1 and "Try: make run PORT=" in result.stderr
    assert "Traceback" not in result.stderr
