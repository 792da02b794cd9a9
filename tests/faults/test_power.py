"""A simulated power cut: only what is in the files at one moment is left.

The gateway is paused (SIGSTOP), its files are copied without SQLite's shared memory, and it
continues. Each copy is what a machine finds when it starts again. The copies include data that the
kernel had not yet written to the disk: that FULL and fsync do so is promised by SQLite and the
kernel, and not proved here. Copying files while they are written proves nothing.
"""

import contextlib
import os
import random
import shutil
import signal
import sqlite3
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.harness.deployment import Deployment, Drivers, Producer, Seen, compare, deploy, until
from tests.servers.gunicorn import Gunicorn, manage

pytestmark = pytest.mark.once  # It brings its own databases, so one run is enough.

COPIES = int(os.environ.get("COPIES", "10"))
SEED = os.environ.get("SEED") or str(random.SystemRandom().randrange(10**6))
FILES = ("gateway.sqlite3", "gateway.sqlite3-wal")
# In one process: to start one takes longer than what it does.
RECOVER = """
from django.core.management import call_command
call_command("settle_holds")
call_command("reconcile")
"""


@dataclass
class Copy:
    """The files on disk, and what clients had seen by then."""

    folder: Path
    seen: list[Seen]

    @property
    def url(self) -> str:
        return f"sqlite:///{self.folder / FILES[0]}"


@contextlib.contextmanager
def stopped(server: Gunicorn) -> Iterator[None]:
    """Pause every process of the gateway."""
    pids = [server.pid, *server.worker_pids()]
    try:
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        until(lambda: all(is_stopped(pid) for pid in pids), 60)
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


def is_stopped(pid: int) -> bool:
    """Tell whether every thread of a process is stopped."""
    states = [
        (task / "stat").read_text().rpartition(")")[2].split()[0]
        for task in Path(f"/proc/{pid}/task").iterdir()
    ]
    return set(states) == {"T"}


def copy_of(deployment: Deployment, drivers: Drivers, number: int) -> Copy:
    folder = deployment.home / f"copy-{number}"
    folder.mkdir()
    # Streams that had ended before. More may be on their way to a client, and are in the files too.
    seen = [one for one in list(drivers.seen) if one.done]
    for name in FILES:
        shutil.copy(deployment.home / name, folder / name)
    if (deployment.home / "journal").exists():
        shutil.copytree(deployment.home / "journal", folder / "journal")
    return Copy(folder, seen)


def brought_up(deployment: Deployment, copy: Copy) -> Deployment:
    """Start a gateway on a copy, as after a power cut: the operator has nothing to repair."""
    found = Deployment(
        copy.folder, copy.url, deployment.ollama, key=deployment.key, more=deployment.more
    )
    assert found.query("PRAGMA integrity_check") == [("ok",)]
    done = manage(found.env, "shell", "--no-imports", "-c", RECOVER)
    assert done.returncode == 0, done.stdout + done.stderr
    assert not found.open_holds(), done.stdout
    return found


def test_the_files_on_disk_at_any_moment_are_enough_to_recover() -> None:
    """Some attempts to settle fail, so that settlements are in the journal as well."""
    dice, producer = random.Random(SEED), Producer()
    print(f"\nSEED={SEED}", end=" ")
    more: dict[str, Any] = {"FAILS": "settle", "FAIL_CHANCE": "0.6"}
    with deploy("sqlite") as deployment:
        deployment.ollama.answer("/api/generate", producer)
        copies, torn = [], None
        with deployment.gateway("tests.faults.faulty_wsgi", **more) as server:
            shape = lambda: (dice.randint(1, 20), dice.choice([0, 0.005, 0.03]))  # noqa: E731
            with Drivers(lambda: server.url, deployment.key, 8, shape) as drivers:
                until(lambda: len(drivers.seen) > 8, 60)
                for number in range(COPIES):
                    time.sleep(dice.uniform(0.1, 0.8))
                    with stopped(server):
                        copies.append(copy_of(deployment, drivers, number))
                torn = copy_of(deployment, drivers, COPIES)

        kept = [
            Deployment(copy.folder, copy.url, deployment.ollama).journal_lines() for copy in copies
        ]
        for copy in copies:
            found = brought_up(deployment, copy)
            compare(copy.seen, producer, found.rows())
        print(f"{COPIES} copies; {[len(copy.seen) for copy in copies]} ends seen before each,")
        print(f"{kept} endings in their journals; every one is in the books", end=" ")
        print(f"(a copy of files being written: {what_of(torn)})", end=" ")
        assert len(copies[-1].seen) > 20 and any(kept)
        deployment.settle_holds()  # Lines that were in the journal when the gateway was stopped.
        deployment.books_balance()
        compare(drivers.seen, producer, deployment.rows())
        outcomes = Counter(row.outcome for row in deployment.rows().values())
        assert outcomes["complete"] >= len(copies[-1].seen)


def what_of(torn: Copy) -> str:
    """Printed, not asserted: no database promises it."""
    try:
        with contextlib.closing(sqlite3.connect(torn.folder / FILES[0])) as database:
            [(word,)] = database.execute("PRAGMA integrity_check(1)").fetchall()
            return str(word)
    except sqlite3.DatabaseError as error:
        return str(error)
