"""The version has one source, and private names that are patched exist in pinned packages."""

import re
import subprocess
import sys
import tomllib
from importlib import import_module, metadata
from pathlib import Path

import pytest
from django.test import Client

from config import __version__
from gateway.wire import answer_when_full

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.once  # It needs no database.


def test_the_project_reads_the_version_of_the_source() -> None:
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text())

    assert pyproject["project"]["dynamic"] == ["version"]
    assert pyproject["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "config.__version__"}


def test_the_changelog_begins_with_the_version() -> None:
    [heading, *_] = re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)

    assert heading == __version__


def test_the_version_is_printed_by_make_run() -> None:
    show = "from config.run import show; show(('127.0.0.1', 8000), None, 'olg_key', 'smollm2:135m')"
    done = subprocess.run(
        [sys.executable, "-c", show], cwd=ROOT, capture_output=True, text=True, timeout=60
    )

    assert f"Ollama gateway {__version__} is ready." in done.stdout, done.stderr


def test_a_health_check_returns_the_version() -> None:
    assert Client().get("/healthz").json() == {"status": "alive", "version": __version__}


def test_a_full_worker_returns_the_same_health_check() -> None:
    response = answer_when_full(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")

    assert response.partition(b"\r\n\r\n")[2] == Client().get("/healthz").content


# --- Private names of packages ---

# Package, module, name, and the file that uses it.
PRIVATE_NAMES = [
    ("gunicorn", "gunicorn.workers.gthread", "_DEFER", "config/worker.py"),
    ("gunicorn", "gunicorn.workers.gthread", "ThreadWorker.accept", "config/worker.py"),
    ("gunicorn", "gunicorn.workers.gthread", "ThreadWorker.enqueue_req", "config/worker.py"),
    ("gunicorn", "gunicorn.workers.gthread", "ThreadWorker.finish_request", "config/worker.py"),
    ("gunicorn", "gunicorn.workers.gthread", "ThreadWorker.handle", "config/worker.py"),
    ("gunicorn", "gunicorn.workers.gthread", "ThreadWorker.notify", "config/worker.py"),
    ("gunicorn", "gunicorn.workers.gthread", "ThreadWorker.set_accept_enabled", "config/worker.py"),
    (
        "gunicorn",
        "gunicorn.workers.gthread",
        "ThreadWorker.wait_for_and_dispatch_events",
        "config/worker.py",
    ),
    ("gunicorn", "gunicorn.util", "write_error", "config/worker.py"),
    ("gunicorn", "gunicorn.arbiter", "Arbiter.murder_workers", "config/pauses.py"),
    ("gunicorn", "gunicorn.http.body", "LengthReader.read", "config/bodies.py"),
    ("gunicorn", "gunicorn.http.body", "ChunkedReader.read", "config/bodies.py"),
    ("gunicorn", "gunicorn.errors", "AppImportError", "embedded/server.py"),
    ("psycopg", "psycopg.errors", "_WaitTimeout", "config/postgresql/base.py"),
    (
        "psycopg-pool",
        "psycopg_pool.base",
        "AttemptWithBackoff.INITIAL_DELAY",
        "config/postgresql/base.py",
    ),
    (
        "psycopg-pool",
        "psycopg_pool.base",
        "AttemptWithBackoff.DELAY_BACKOFF",
        "config/postgresql/base.py",
    ),
]


def missing(package: str, module: str, name: str, file: str) -> str | None:
    """Return a sentence about a name that a package no longer has."""
    owner: object = import_module(module)
    for part in name.split("."):
        if not hasattr(owner, part):
            return (
                f"{package} {metadata.version(package)} has no {module}.{name}, which {file} uses: "
                "adapt that file, or pin a version that requirements.in names as supported."
            )
        owner = getattr(owner, part)
    return None


@pytest.mark.parametrize(("package", "module", "name", "file"), PRIVATE_NAMES)
def test_a_private_name_exists(package: str, module: str, name: str, file: str) -> None:
    assert (sentence := missing(package, module, name, file)) is None, sentence


def test_a_name_that_is_gone_is_reported_in_one_sentence() -> None:
    sentence = missing("gunicorn", "gunicorn.workers.gthread", "_GONE", "config/worker.py")

    assert sentence is not None
    version = metadata.version("gunicorn")
    assert sentence.startswith(
        f"gunicorn {version} has no gunicorn.workers.gthread._GONE, which config/worker.py uses"
    )


def test_the_supported_versions_stand_next_to_the_pins() -> None:
    text = (ROOT / "requirements.in").read_text()

    for package in {package for package, *_ in PRIVATE_NAMES}:
        [supported] = re.findall(rf"^# Supported: {package} ([\d.]+)\.x", text, re.MULTILINE)
        assert metadata.version(package).startswith(f"{supported}.")
