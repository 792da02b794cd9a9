"""A backup made under load with the commands of docs/operations.md, restored elsewhere, reconciles.

The commands are read from the page, so that the page stays true.
"""

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness.deployment import Deployment, Drivers, Producer, deploy
from tests.servers.gunicorn import ROOT, manage

pytestmark = pytest.mark.once  # It brings both databases itself, so one run is enough.

PAGE = ROOT / "docs" / "operations.md"


def command(title: str) -> str:
    """Return the shell block under a heading of the page."""
    found = re.search(rf"^### {title}\n.*?```sh\n(.*?)```", PAGE.read_text(), re.S | re.M)
    assert found, title
    return found[1]


def run(script: str, deployment: Deployment, folder: Path, **more: str) -> None:
    path = os.environ["PATH"]
    programs = [str(Path(sys.executable).parent)]
    if deployment.postgres:
        programs.append(str(deployment.postgres.program("pg_dump").parent))
    env = {
        **os.environ,
        **deployment.env,
        "PATH": ":".join([*programs, path]),
        "BACKUP": str(folder),
    }
    done = subprocess.run(
        ["bash", "-eu", "-c", script],
        cwd=ROOT,
        env=env | more,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(params=["sqlite", "postgresql"])
def deployment(request: pytest.FixtureRequest) -> Iterator[Deployment]:
    with deploy(request.param) as made:
        made.ollama.answer("/api/generate", Producer())
        yield made


def restored_url(deployment: Deployment) -> str:
    """The URL of an empty database beside the first."""
    if deployment.postgres:
        return deployment.postgres.create("restored")
    return f"sqlite:///{deployment.home / 'restored.sqlite3'}"


def test_a_backup_under_load_restores_and_reconciles(
    deployment: Deployment, tmp_path: Path
) -> None:
    name = "PostgreSQL" if deployment.postgres else "SQLite"
    with (
        deployment.gateway() as server,
        Drivers(lambda: server.url, deployment.key, 8, lambda: (5, 0.01)),
    ):
        time.sleep(1.5)
        run(command(f"Backup: {name}"), deployment, tmp_path)
        time.sleep(0.5)
    deployment.books_balance()
    url, began = restored_url(deployment), time.monotonic()

    run(command(f"Restore: {name}"), deployment, tmp_path, DATABASE_URL=url)
    took = time.monotonic() - began

    elsewhere = Deployment(
        deployment.home, url, deployment.ollama, deployment.postgres, deployment.key
    )
    # Holds that were open at that moment have no process; the journal's settlements are newer.
    assert manage(elsewhere.env, "settle_holds").returncode == 0
    elsewhere.books_balance()
    restored, now = elsewhere.rows(), deployment.rows()
    print(f"\n{name}: {len(restored)} of {len(now)} rows restored in {took:.1f} s")
    assert restored and len(restored) <= len(now)
    complete = {name for name, row in restored.items() if row.outcome == "complete"}
    assert all(restored[name] == now[name] for name in complete)


def test_a_restored_database_is_still_append_only_and_serves(
    deployment: Deployment, tmp_path: Path
) -> None:
    """The guards of the append-only tables are part of the backup."""
    name = "PostgreSQL" if deployment.postgres else "SQLite"
    run(command(f"Backup: {name}"), deployment, tmp_path)
    elsewhere = Deployment(
        deployment.home,
        restored_url(deployment),
        deployment.ollama,
        deployment.postgres,
        deployment.key,
    )
    run(command(f"Restore: {name}"), deployment, tmp_path, DATABASE_URL=elsewhere.url)

    with pytest.raises(Exception, match="append-only"):
        elsewhere.query("UPDATE model_prices SET prompt_price = 0")
    with (
        elsewhere.gateway() as server,
        Drivers(lambda: server.url, deployment.key, 2, lambda: (3, 0.0)) as drivers,
    ):
        time.sleep(1)
    assert any(one.done and one.usage for one in drivers.seen)
    elsewhere.books_balance()
