"""What `make bench` measures: the model server itself, this gateway on each database, and a peer."""

import contextlib
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from tests.servers.gunicorn import ROOT, Gunicorn, manage
from tests.servers.postgres import Postgres

MODEL = "bench:latest"
SECRET_KEY = "a-secret-for-benchmarks-0123456789-abcdefghijklmnopqrstuvwxyz"
# A peer has its own virtual environment, which is kept for the next run.
PEERS = ROOT / ".bench"
LITELLM = "litellm[proxy]==1.102.4"
START_SECONDS = 90.0


@dataclass(frozen=True)
class Target:
    """A server of chat requests, and the processes whose CPU and memory are measured."""

    name: str
    url: str
    key: str
    model: str
    path: str
    # Each returns process ids: of the server, and of the database behind it.
    server: Callable[[], list[int]]
    database: Callable[[], list[int]] = list


# --- The model server -----------------------------------------------------------------------------


@contextlib.contextmanager
def model_server(port: int | None = None) -> Iterator[Target]:
    port = port or free_port()
    with _process([sys.executable, str(ROOT / "bench/model_server.py"), str(port)], {}) as running:
        url = f"http://127.0.0.1:{port}"
        _wait_for(f"{url}/api/version", running)
        yield Target("direct", url, "none", MODEL, "/api/chat", lambda: [running.pid])


# --- This gateway ---------------------------------------------------------------------------------


@contextlib.contextmanager
def gateway_on_sqlite(upstream: str) -> Iterator[Target]:
    with contextlib.ExitStack() as stack:
        home = stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-"))
        url = f"sqlite:///{home}/db.sqlite3"
        yield stack.enter_context(_gateway("gateway, SQLite", upstream, url, home))


@contextlib.contextmanager
def gateway_on_postgresql(upstream: str) -> Iterator[Target]:
    with contextlib.ExitStack() as stack:
        home = stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-"))
        server = stack.enter_context(Postgres())
        target = _gateway("gateway, PostgreSQL", upstream, server.url(), home)
        yield replace(stack.enter_context(target), database=postgres_pids)


def postgres_pids() -> list[int]:
    """Return the processes of the PostgreSQL server that this benchmark started."""
    mine = os.getpid()
    return [pid for pid in pids() if "postgres" in _command(pid) and mine in ancestors(pid)]


@contextlib.contextmanager
def _gateway(name: str, upstream: str, database: str, home: str) -> Iterator[Target]:
    env = {
        "DJANGO_SETTINGS_MODULE": "config.settings",
        "SECRET_KEY": SECRET_KEY,
        "DATABASE_URL": database,
        "DATABASE_POOL_SIZE": "8",
        "OLLAMA_BASE": upstream,
        "JOURNAL_DIR": f"{home}/journal",
        "GATEWAY_WORKERS": "2",
        "GATEWAY_THREADS": "600",
        "ACCESS_LOG": "0",
    }
    for command in (
        ("migrate", "--verbosity", "0"),
        ("set_price", MODEL, "--input", "0.001", "--output", "0.002"),
        ("create_account", "Bench", "--credit", "100000"),
    ):
        _command_succeeds(env, *command)
    key = re.search(r"olg_\w+", _command_succeeds(env, "issue_key", "Bench", "--name", "bench"))
    if key is None:
        raise RuntimeError("issue_key printed no key.")
    with Gunicorn(env) as server:
        path = "/v1/chat/completions"
        yield Target(name, server.url, key[0], MODEL, path, lambda: family(server.pid))


def _command_succeeds(env: Mapping[str, str], *command: str) -> str:
    done = manage(env, *command)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr or done.stdout}")
    return done.stdout


# --- Peers ----------------------------------------------------------------------------------------


@contextlib.contextmanager
def litellm(upstream: str) -> Iterator[Target]:
    """LiteLLM's proxy with two workers and without a database: its cheapest form."""
    python = _environment("litellm", LITELLM)
    with tempfile.TemporaryDirectory(prefix="bench-") as home:
        config = Path(home) / "config.yaml"
        config.write_text(
            "model_list:\n"
            f"  - model_name: {MODEL}\n"
            f"    litellm_params: {{model: 'ollama_chat/{MODEL}', api_base: '{upstream}'}}\n"
            "litellm_settings: {telemetry: false, drop_params: true}\n"
            "general_settings: {master_key: sk-bench}\n"
        )
        port = free_port()
        command = [str(python.with_name("litellm")), "--config", str(config)]
        command += ["--host", "127.0.0.1", "--port", str(port), "--num_workers", "2"]
        # Its workers take longer to start than its supervisor waits for them on a busy machine.
        command += ["--timeout_worker_healthcheck", "120"]
        quiet = {"LITELLM_TELEMETRY": "False", "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
        with _process(command, {**quiet, "LITELLM_LOG": "ERROR"}) as running:
            url = f"http://127.0.0.1:{port}"
            _wait_for(f"{url}/health/liveliness", running)
            path = "/v1/chat/completions"
            yield Target("litellm", url, "sk-bench", MODEL, path, lambda: family(running.pid))


@contextlib.contextmanager
def running_peer(url: str, key: str, pid: int, model: str) -> Iterator[Target]:
    """A running peer that uses the model server of this benchmark."""
    path = "/v1/chat/completions"
    yield Target("peer", url, key, model, path, lambda: family(pid) if pid else [])


def _environment(name: str, requirement: str) -> Path:
    """Return the python of a peer's own virtual environment, made if it is not there."""
    folder = PEERS / name
    done = folder / "installed"
    python = folder / "bin" / "python"
    if not done.exists() or done.read_text() != requirement:
        print(f"Installing {requirement} into {folder.relative_to(ROOT)} …", flush=True)
        shutil.rmtree(folder, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        install = [str(python), "-m", "pip", "install", "--quiet", "--only-binary", ":all:"]
        subprocess.run([*install, requirement], check=True)
        done.write_text(requirement)
    return python


# --- Processes ------------------------------------------------------------------------------------


@contextlib.contextmanager
def _process(command: list[str], env: Mapping[str, str]) -> Iterator["subprocess.Popen[bytes]"]:
    with tempfile.NamedTemporaryFile(prefix="bench-", suffix=".log") as log:
        clean = {name: value for name, value in os.environ.items() if name != "DATABASE_URL"}
        running = subprocess.Popen(
            command, env={**clean, **env}, stdout=log, stderr=log, start_new_session=True
        )
        try:
            yield running
        finally:
            running.terminate()
            try:
                running.wait(15)
            except subprocess.TimeoutExpired:
                running.kill()
                running.wait()


def _wait_for(url: str, running: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            with urllib.request.urlopen(url, timeout=2):
                return
        except (OSError, ValueError) as error:
            if running.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"Nothing answers at {url}: {error}") from None
        time.sleep(0.2)


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def pids() -> list[int]:
    return [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]


def family(pid: int) -> list[int]:
    """Return a process and all that descend from it."""
    return [one for one in pids() if one == pid or pid in ancestors(one)]


def ancestors(pid: int) -> list[int]:
    found: list[int] = []
    while (parent := _parent(pid)) > 1 and len(found) < 64:
        found.append(parent)
        pid = parent
    return found


def _parent(pid: int) -> int:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return 0
    return int(stat.rpartition(")")[2].split()[1])


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().partition(b"\0")[0].decode()
    except OSError:
        return ""


def cpu_seconds(processes: list[int]) -> float:
    """Return the processor time of processes, user and system, ended children included."""
    return sum(map(_cpu_seconds, processes))


def _cpu_seconds(pid: int) -> float:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return 0.0
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


def memory_mb(processes: list[int]) -> float:
    """Return the memory of processes in MB, pages that several share counted in parts."""
    return sum(map(_memory_mb, processes))


def _memory_mb(pid: int) -> float:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0.0
    return sum(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024
