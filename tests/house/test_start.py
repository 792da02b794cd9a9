"""Settings that cannot work stop the start, with one clear line each."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SECRET = "a-secret-for-tests-that-is-long-enough-to-pass-its-own-check"

BAD = {
    "no secret": ({"SECRET_KEY": ""}, "accounts.E001"),
    "a short secret": ({"SECRET_KEY": "short"}, "accounts.E001"),
    "an upstream without scheme": ({"OLLAMA_BASE": "localhost:11434"}, "gateway.E001"),
    "an upstream that is a file": ({"OLLAMA_BASE": "file:///etc/passwd"}, "gateway.E001"),
    "an upstream with a password": ({"OLLAMA_BASE": "http://u:p@host"}, "gateway.E001"),
    "a deadline of zero": ({"UPSTREAM_TOTAL_SECONDS": "0"}, "gateway.E002"),
    "a default above the most": ({"DEFAULT_COMPLETION_TOKENS": "99999"}, "gateway.E003"),
    "a currency in words": ({"CURRENCY": "dollars"}, "billing.E001"),
    "a lease of nothing": ({"HOLD_LEASE_SECONDS": "0"}, "billing.E002"),
}


def check(**env: str) -> subprocess.CompletedProcess[str]:
    given = {"DJANGO_SETTINGS_MODULE": "config.settings", "SECRET_KEY": SECRET, **env}
    return subprocess.run(
        [sys.executable, "manage.py", "check"],
        cwd=ROOT,
        env={**os.environ, **given},
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_good_settings_start() -> None:
    assert check().returncode == 0


def test_bad_settings_stop_the_server_too() -> None:
    command = [sys.executable, "-m", "gunicorn", "-c", "config/gunicorn.py", "config.wsgi"]
    env = {**os.environ, "DJANGO_SETTINGS_MODULE": "config.settings", "SECRET_KEY": "short"}

    result = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=60)

    assert result.returncode != 0 and "accounts.E001" in result.stderr


@pytest.mark.parametrize(("env", "number"), BAD.values(), ids=BAD.keys())
def test_bad_settings_do_not(env: dict[str, str], number: str) -> None:
    result = check(**env)

    assert result.returncode != 0 and number in result.stderr
