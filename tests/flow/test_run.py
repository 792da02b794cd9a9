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
from typing import Any

import pytest

from tests.fakes.ollama import FakeOllama
from tests.harness.gateway import eventually
from tests.servers.gunicorn import manage

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
        "GATEWAY_PORT": str(free_port()),
        "OLLAMA_BASE": f"http://127.0.0.1:{free_port()}",
    }


@contextmanager
def run(home: dict[str, str], log: Path) -> Iterator[str]:
    """Run it as make does, and yield what it printed once it is ready; then press Ctrl-C."""
    with log.open("wb") as out:
        # As loose as a shell of a system for one person has it.
        running = subprocess.Popen(
            [sys.executable, "-m", "config.run"],
            cwd=ROOT,
            env=home,
            stdout=out,
            stderr=out,
            umask=0,
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
        lines = pasted(curl)
        assert "".join(line["response"] for line in lines).strip()
        assert len(lines) > 2 and lines[-1]["usage"]["completion_tokens"] > 0
        assert only_its_user_may_read(tmp_path)
        login, key = printed("Admin", text), printed("Key", text)
        assert re.search(r"admin / \S{12,}", login) and key.startswith("olg_")

    assert not listens(home["GATEWAY_PORT"]) and not listens(home["OLLAMA_BASE"].rpartition(":")[2])


def pasted(curl: str) -> list[dict[str, Any]]:
    """Run a curl as printed, and return the objects of the stream."""
    out = subprocess.check_output(["bash", "-c", curl], text=True, timeout=240)
    return [json.loads(line) for line in out.splitlines()]


def only_its_user_may_read(folder: Path) -> bool:
    files = [path for path in folder.rglob("*") if path.name != "log" and path.is_file()]
    return len(files) >= 3 and all(path.stat().st_mode & 0o077 == 0 for path in files)


def test_with_an_ollama_of_ones_own_the_pasted_curl_answers_too(
    home: dict[str, str], tmp_path: Path
) -> None:
    with FakeOllama(models=("aa-embed:1b", "house:1b", "llama3.2:latest")) as ollama:
        home["OLLAMA_BASE"] = ollama.url
        with run(home, tmp_path / "log") as text:
            [priced] = [line for line in text.splitlines() if line.startswith("Priced")]
            assert "aa-embed:1b, house:1b." in priced and "manage.py set_price" in priced
            curl = text[text.index("  curl") : text.index("Ctrl-C")]
            assert '"house:1b"' in curl
            assert pasted(curl)[-1]["usage"]["cost"] != "0"

        manage(home, "create_account", "Acme")
        ollama.models.append("new:1b")
        with run(home, tmp_path / "again") as text:
            # Somebody pays: a model without a price may be meant to have none.
            assert "Priced" not in text


def test_the_key_that_is_pasted_elsewhere_can_do_little_and_ends(
    home: dict[str, str], tmp_path: Path
) -> None:
    with FakeOllama() as ollama:
        home["OLLAMA_BASE"] = ollama.url
        with run(home, tmp_path / "log"):
            pass
    show = "from accounts.models import ApiKey; k = ApiKey.objects.get(); print(k.scopes, k.expiry)"
    said = manage(home, "shell", "-c", show).stdout

    assert "['infer', 'usage'] 20" in said


def test_without_a_model_that_answers_it_says_what_to_do(
    home: dict[str, str], tmp_path: Path
) -> None:
    with FakeOllama(models=("nomic-embed-text:latest",)) as ollama:
        home["OLLAMA_BASE"] = ollama.url
        with run(home, tmp_path / "log") as text:
            assert "ollama pull llama3.2" in text and "curl" not in text


def test_a_second_run_keeps_everything(home: dict[str, str], tmp_path: Path) -> None:
    with run(home, tmp_path / "first") as text:
        key = printed("Key", text)

    with run(home, tmp_path / "second") as text:
        assert printed("Key", text) == key
        assert "your password" in printed("Admin", text)
        assert "manage.py changepassword admin" in text


def test_a_taken_port_is_one_clear_line(home: dict[str, str], tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", int(home["GATEWAY_PORT"]))):
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
