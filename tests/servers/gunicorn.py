"""The gateway under its real server, as a subprocess, for tests of sockets and processes."""

import contextlib
import http.client
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

ROOT = Path(__file__).resolve().parents[2]
START_TIMEOUT = 60.0


class Gunicorn:
    """Use as a context manager. `env` extends and overrides this process's environment."""

    def __init__(
        self,
        env: Mapping[str, str],
        *,
        app: str = "config.wsgi",
        config: str | None = "config/gunicorn.py",
        args: Sequence[str] = (),
        port: int | None = None,
        cwd: Path = ROOT,
    ) -> None:
        self.port = port or _free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._env = {
            **os.environ,
            **env,
            "GATEWAY_HOST": "127.0.0.1",
            "GATEWAY_PORT": str(self.port),
        }
        configured = ["-c", config] if config else []
        self._command = [sys.executable, "-m", "gunicorn", *configured]
        self._command += ["--bind", f"127.0.0.1:{self.port}", *args, app]
        self._cwd = cwd

    def __enter__(self) -> Self:
        self._log = tempfile.NamedTemporaryFile(prefix="gunicorn-", suffix=".log")
        self._killed = False
        # Its own process group, so that `kill` reaches its workers only.
        self._process = subprocess.Popen(
            self._command,
            cwd=self._cwd,
            env=self._env,
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
            start_new_session=True,
        )
        try:
            self._await()
        except BaseException:
            self.kill()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()
        self._log.close()

    @property
    def pid(self) -> int:
        return self._process.pid

    def log(self) -> str:
        """Return the output of the server and its workers."""
        return Path(self._log.name).read_text(errors="replace")

    def worker_pids(self) -> list[int]:
        return [pid for pid in _pids() if _parent(pid) == self.pid]

    def kill_worker(self, pid: int) -> None:
        """Kill one worker as the kernel does when memory runs out."""
        assert pid in self.worker_pids(), f"{pid} is no worker of {self.pid}"
        os.kill(pid, signal.SIGKILL)

    def signal(self, signum: int) -> None:
        """Send the master a signal, HUP to reload for instance."""
        self._process.send_signal(signum)

    def stop(self, timeout: float = 10.0) -> int:
        """Stop the server, kill it after `timeout`, and return its exit status."""
        if self._process.poll() is None:
            self._process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout)
        return self.kill()

    def kill(self) -> int:
        """Kill the master and its workers at the same moment."""
        if not self._killed:
            # Only once: the pid may be reused later.
            self._killed = True
            workers = self.worker_pids()
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
            _wait_for_end(workers)
        return self._process.wait(10)

    def _await(self) -> None:
        deadline = time.monotonic() + START_TIMEOUT
        while self._process.poll() is None and time.monotonic() < deadline:
            if self._is_healthy():
                return
            time.sleep(0.05)
        raise RuntimeError(f"gunicorn did not become healthy:\n{self.log()[-3000:]}")

    def _is_healthy(self) -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=2)
        try:
            connection.request("GET", "/healthz")
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()


def manage(
    env: Mapping[str, str], *args: str, stdin: str | None = None, timeout: float = 60
) -> subprocess.CompletedProcess[str]:
    """Run a management command of the gateway in the same environment as `Gunicorn`."""
    return subprocess.run(
        [sys.executable, "manage.py", *args],
        cwd=ROOT,
        env={**os.environ, **env},
        input=stdin,
        capture_output=True,
        text=True,
        timeout=timeout,
    )


def _pids() -> list[int]:
    return [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]


def _parent(pid: int) -> int | None:
    """The parent of a process that lives, by /proc."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return None
    # The command's name is in parentheses and may contain spaces.
    state, parent, *_ = stat.rpartition(")")[2].split()
    return None if state == "Z" else int(parent)


def _wait_for_end(pids: Sequence[int]) -> None:
    deadline = time.monotonic() + 5
    while any(map(_parent, pids)) and time.monotonic() < deadline:
        time.sleep(0.01)


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])
