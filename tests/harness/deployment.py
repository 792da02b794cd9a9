"""A gateway with its own database, which a test may stop, fill up or take away.

Nothing here uses the tests' database: tests read the deployment's tables, and its own `reconcile`
checks them.
"""

import contextlib
import os
import shutil
import sqlite3
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

import psycopg
import pytest

from billing.money import from_units
from tests.fakes.ollama import FakeOllama, Received
from tests.fakes.script import Sleep, tokens
from tests.servers.client import BROKEN, Head, RawClient
from tests.servers.gunicorn import Gunicorn, manage
from tests.servers.postgres import Postgres

SECRET = "a-secret-for-tests-that-is-long-enough-to-pass-its-own-check"
DATABASES = ("sqlite", "postgresql")
ALL_ENDED = "SELECT count(*) FROM billing_hold WHERE state = 'open'"


@dataclass
class Deployment:
    """A customer with a key, a model with a price, a database; and gateways on demand."""

    home: Path
    url: str
    ollama: FakeOllama
    postgres: Postgres | None = None
    key: str = ""
    more: dict[str, str] = field(default_factory=dict)

    @property
    def env(self) -> dict[str, str]:
        return {
            "DJANGO_SETTINGS_MODULE": "config.settings",
            "ENV_FILE": str(self.home / "none"),
            "SECRET_KEY": SECRET,
            "DATABASE_URL": self.url,
            "DATABASE_POOL_SIZE": "8",
            "OLLAMA_BASE": self.ollama.url,
            "JOURNAL_DIR": str(self.home / "journal"),
            "GATEWAY_THREADS": "64",
            "HOLD_LEASE_SECONDS": "3",
            "ACCESS_LOG": "0",
            "UPSTREAM_FIRST_LINE_SECONDS": "60",
            **self.more,
        }

    def gateway(self, app: str = "config.wsgi", port: int | None = None, **more: str) -> Gunicorn:
        return Gunicorn(self.env | more, app=app, port=port)

    def query(self, statement: str) -> list[tuple[Any, ...]]:
        if self.postgres is None:
            path = self.url.removeprefix("sqlite:///")
            connected = sqlite3.connect(path, timeout=30, isolation_level=None)
            with contextlib.closing(connected) as database:
                return database.execute(statement).fetchall()
        with psycopg.connect(self.url, autocommit=True, connect_timeout=5) as connection:
            cursor = connection.execute(statement)
            return cursor.fetchall() if cursor.description else []

    def open_holds(self) -> int:
        return int(self.query(ALL_ENDED)[0][0])

    def rows(self) -> dict[str, "Row"]:
        """The usage rows by request id; fails if one request has two."""
        found = self.query(
            "SELECT request_id, prompt_tokens, completion_tokens, cost, outcome, billed"
            " FROM token_usages"
        )
        rows = {str(row[0]).replace("-", ""): Row(*row[1:]) for row in found}
        assert len(rows) == len(found), "a request has two rows"
        return rows

    def journal_lines(self) -> int:
        """How many settlements wait there; a file may be removed meanwhile."""
        lines = 0
        for path in (self.home / "journal").glob("*.ndjson"):
            with contextlib.suppress(FileNotFoundError):
                lines += sum(map(bool, path.read_text().split("\n")))
        return lines

    def settle_holds(self) -> None:
        """Settle holds whose gateway a test has killed."""
        if self.open_holds():
            settled = manage(self.env, "settle_holds")
            assert settled.returncode == 0, settled.stderr

    def books_balance(self, seconds: float = 60.0) -> float:
        """Wait until every hold has ended; return how long. Then every sum is right."""
        began = time.monotonic()
        until(lambda: not self.open_holds(), seconds)
        took = time.monotonic() - began
        proved = manage(self.env, "reconcile")
        assert proved.returncode == 0, proved.stdout
        return took


@dataclass(frozen=True)
class Row:
    prompt_tokens: int
    completion_tokens: int
    units: int
    outcome: str
    billed: bool

    @property
    def cost(self) -> Decimal:
        return from_units(self.units)


@contextlib.contextmanager
def deploy(
    database: str, *, home: Path | None = None, postgres: Postgres | None = None, **more: str
) -> Iterator[Deployment]:
    """A migrated database with Alice's account, credit and key, and llama3 at a price.

    `postgres`: the server to start, where it is not the usual one. However a test leaves the
    deployment, its books balance, or the test fails.
    """
    with contextlib.ExitStack() as stack:
        ollama = stack.enter_context(FakeOllama())
        if home is None:
            home = Path(tempfile.mkdtemp(prefix="deployment-"))
            stack.callback(shutil.rmtree, home, ignore_errors=True)
        if database == "sqlite":
            url = f"sqlite:///{home / 'gateway.sqlite3'}"
        else:
            postgres = stack.enter_context(postgres or Postgres())
            url = postgres.create("gateway")
        made = Deployment(home, url, ollama, postgres, more=more)
        _seed(made)
        yield made
        made.settle_holds()
        made.books_balance()


SEED = """
from django.core.management import call_command
call_command("migrate", verbosity=0)
call_command("create_account", "Alice", credit="1000000")
call_command("set_price", "llama3", input="0.002", output="0.004")
call_command("issue_key", "Alice", name="test")
"""


def _seed(made: Deployment) -> None:
    """All in one process, since starting one takes longer than the work."""
    made.key = _key_in(manage(made.env, "shell", "--no-imports", "-c", SEED))


def issue_key(made: Deployment, account: str = "Alice") -> str:
    return _key_in(manage(made.env, "issue_key", account, "--name", "test"))


def _key_in(issued: subprocess.CompletedProcess[str]) -> str:
    assert issued.returncode == 0, issued.stderr
    return next(word for word in issued.stdout.split() if word.startswith("olg_"))


def until(condition: Callable[[], Any], seconds: float = 30.0) -> Any:
    """Wait until a condition is true and return its value; fail after some seconds."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"the condition was false for {seconds} s"
        time.sleep(0.05)
    return found


# --- Three accounts: what the fake produced, what clients received, what the ledger says ---------


@dataclass(frozen=True)
class Produced:
    """What the fake was to write for one prompt, and what it wrote."""

    prompt_tokens: int
    completion_tokens: int
    received: Received

    @property
    def written(self) -> int:
        return min(self.received.lines_sent, self.completion_tokens)


class Producer:
    """A script for the fake: it answers prompts `N PIECES PAUSE`, and records them under N."""

    def __init__(self) -> None:
        self.produced: dict[int, Produced] = {}

    def __call__(self, received: Received) -> Any:
        number, pieces, pause = received.json["prompt"].split()
        # Counts that differ between requests and are accepted: less than BEYOND_PROMPT_BOUND.
        prompt, completion = 1000 + int(number) % 3000, int(pieces)
        self.produced[int(number)] = Produced(prompt, completion, received)
        return [Sleep(0.001), tokens(["x"] * completion, prompt=prompt, pause=float(pause))]


@dataclass
class Seen:
    """What one client had received when its connection had ended."""

    number: int
    status: int = 0
    request_id: str = ""
    pieces: int = 0
    usage: Mapping[str, Any] | None = None
    done: bool = False
    error: str = ""
    retry_after: str = ""
    seconds: float = 0.0


def ask(
    url: str, key: str, number: int, pieces: int = 3, pause: float = 0.0, timeout: float = 60.0
) -> Seen:
    """Send a request for a stream and read the response to its end."""
    seen, began = Seen(number), time.monotonic()
    body = {
        "model": "llama3",
        "prompt": f"{number} {pieces} {pause}",
        "options": {"num_predict": max(pieces, 1)},
    }
    try:
        with RawClient(url, timeout=timeout) as client:
            client.post("/api/generate", body, key=key)
            _read(client, seen)
    except (*BROKEN, TimeoutError, ValueError, OSError) as broken:
        seen.error = seen.error or type(broken).__name__
    seen.seconds = time.monotonic() - began
    return seen


def _read(client: RawClient, seen: Seen) -> None:
    head: Head = client.read_head()
    seen.status, seen.request_id = head.status, head.headers.get("x-request-id", "")
    seen.request_id = seen.request_id.replace("-", "")
    seen.retry_after = head.headers.get("retry-after", "")
    while (line := client.read_json()) is not None:
        seen.error = seen.error or str(line.get("code", ""))
        if line.get("done") is True:
            seen.done, seen.usage = True, line.get("usage")
        elif "error" not in line:
            seen.pieces += 1


class Drivers:
    """Clients that request one stream after the other, until they are stopped."""

    def __init__(
        self,
        urls: Callable[[], str],
        key: str,
        count: int,
        shape: Callable[[], tuple[int, float]],
    ) -> None:
        self._urls, self._key, self._shape = urls, key, shape
        self.seen: list[Seen] = []
        self._number = iter(range(1, 10**6))
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._threads = [threading.Thread(target=self._drive) for _ in range(count)]

    def __enter__(self) -> "Drivers":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stopped.set()
        for thread in self._threads:
            thread.join(90)

    def _drive(self) -> None:
        while not self._stopped.is_set():
            with self._lock:
                number, (pieces, pause) = next(self._number), self._shape()
            seen = ask(self._urls(), self._key, number, pieces, pause)
            self.seen.append(seen)
            if not seen.done:
                self._stopped.wait(0.05)


def compare(seen: list[Seen], producer: Producer, rows: dict[str, Row]) -> None:
    """Every `done` that a client saw is billed as reported, and nothing more than was produced."""
    for one in seen:
        made = producer.produced.get(one.number)
        row = rows.pop(one.request_id, None) if one.request_id else None
        if one.done:
            assert row and made and one.usage, one
            said = (made.prompt_tokens, made.completion_tokens)
            assert (row.prompt_tokens, row.completion_tokens) == said, (one, row)
            assert row.billed and row.outcome == "complete", (one, row)
            usage = one.usage
            assert (usage["prompt_tokens"], usage["completion_tokens"]) == said, one
            assert Decimal(usage["cost"]) == row.cost == _cost(*said), (one, row)
        elif row:
            assert not row.billed or (made and _within(row, made)), (one, row, made)
    _compare_unseen(seen, producer, rows)


def _compare_unseen(seen: list[Seen], producer: Producer, rows: dict[str, Row]) -> None:
    """Requests whose clients received no status line: together no more than was produced."""
    known = {one.number for one in seen if one.request_id}
    made = sorted(one.written for number, one in producer.produced.items() if number not in known)
    billed = sorted(row.completion_tokens for row in rows.values() if row.billed)
    for count in range(1, len(billed) + 1):
        assert billed[-count] <= made[-count], (billed, made)


def _within(row: Row, made: Produced) -> bool:
    return row.completion_tokens <= made.written and row.prompt_tokens <= made.prompt_tokens


def _cost(prompt: int, completion: int) -> Decimal:
    return (2 * Decimal(prompt) + 4 * Decimal(completion)) / 1_000_000


def fill(folder: Path, leave: int) -> Path:
    """Fill a file system up to `leave` bytes."""
    path = folder / "ballast"
    free = os.statvfs(folder).f_bavail * os.statvfs(folder).f_frsize
    path.write_bytes(b"\0" * max(0, free - leave))
    return path


@contextlib.contextmanager
def small_disk(folder: Path, megabytes: int) -> Iterator[Path]:
    """A file system in memory, for every user, until the test ends."""
    folder.mkdir(parents=True)
    options = ["-t", "tmpfs", "-o", f"size={megabytes}m,mode=1777", "tmpfs", str(folder)]
    mounted = subprocess.run(["mount", *options], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"no tmpfs can be mounted here: {mounted.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)
