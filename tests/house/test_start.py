"""Settings that cannot work stop the start, with one clear line each."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from gateway.checks import check_upstream

pytestmark = pytest.mark.once  # It needs no database.

ROOT = Path(__file__).resolve().parents[2]
SECRET = "a-secret-for-tests-that-is-long-enough-to-pass-its-own-check"

BAD = {
    "no secret": ({"SECRET_KEY": ""}, "accounts.E001"),
    "a short secret": ({"SECRET_KEY": "short"}, "accounts.E001"),
    "an upstream without scheme": ({"OLLAMA_BASE": "localhost:11434"}, "gateway.E001"),
    "an upstream that is a file": ({"OLLAMA_BASE": "file:///etc/passwd"}, "gateway.E001"),
    "an upstream with a password": ({"OLLAMA_BASE": "http://u:p@host"}, "gateway.E001"),
    "an upstream in public": ({"OLLAMA_BASE": "https://8.8.8.8"}, "gateway.E001"),
    "a secret of one letter": ({"SECRET_KEY": "x" * 64}, "accounts.E001"),
    "a blank secret": ({"SECRET_KEY": " " * 64}, "accounts.E001"),
    "any host": ({"ALLOWED_HOSTS": "*"}, "accounts.E003"),
    "any host among others": ({"ALLOWED_HOSTS": "llm.example.com,*"}, "accounts.E003"),
    "no host": ({"ALLOWED_HOSTS": ""}, "accounts.E003"),
    "debugging": ({"DEBUG": "on"}, "accounts.E004"),
    "a deadline of zero": ({"UPSTREAM_TOTAL_SECONDS": "0"}, "gateway.E002"),
    "a default above the most": ({"DEFAULT_COMPLETION_TOKENS": "99999"}, "gateway.E003"),
    "a currency in words": ({"CURRENCY": "dollars"}, "billing.E001"),
    "a lease of nothing": ({"HOLD_LEASE_SECONDS": "0"}, "billing.E002"),
}


# What resolvers and libraries take for a host, and where it leads.
NOT_OF_THE_HOUSE = [
    *("8.8.8.8", "8.8.8.8.", "8.8.2056", "134744072", "0x08080808", "010.010.010.010", "0x8.8.8.8"),
    *("0.0.0.0", "0", "0x0", "255.255.255.255", "224.0.0.1", "100.100.100.200"),
    *("169.254.169.254", "2852039166", "0xa9fea9fe", "0251.0376.0251.0376"),
    *("[::]", "[2001:4860:4860::8888]", "[::ffff:8.8.8.8]", "[::ffff:808:808]", "[::8.8.8.8]"),
    *("[::ffff:169.254.169.254]", "[fe80::1]", "[fe80::1%25eth0]", "[fd00:ec2::254]", "[ff02::1]"),
    *("[64:ff9b::808:808]", "[2002:808:808::1]", "８.８.８.８", "8。8。8。8", "%38.8.8.8"),
    *("127.0.0.1@8.8.8.8", "@8.8.8.8", ":p@ollama", "127.0.0.1\\@8.8.8.8", "a b", "ollama\n"),
]
OF_THE_HOUSE = [
    *("127.0.0.1", "127.1", "2130706433", "[::1]", "[::ffff:127.0.0.1]", "10.0.0.5", "172.16.0.1"),
    *("192.168.1.9", "100.64.0.7", "[fd00::5]", "ollama", "gpu-1.house.example", "localhost"),
    *("host.docker.internal", "ollama_1", "llm.example.com"),
]


@pytest.mark.parametrize("host", NOT_OF_THE_HOUSE)
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_prompts_leave_the_house_by_no_spelling_of_an_address(
    settings: Any, host: str, scheme: str
) -> None:
    settings.OLLAMA_BASE = f"{scheme}://{host}:11434" if "\n" not in host else f"{scheme}://{host}"

    assert [error.id for error in check_upstream()] == ["gateway.E001"]


@pytest.mark.parametrize("host", OF_THE_HOUSE)
@pytest.mark.parametrize("address", ["http://{}", "https://{}:11434", "http://{}:8080/ollama"])
def test_an_address_of_the_house_and_any_name_will_do(
    settings: Any, host: str, address: str
) -> None:
    settings.OLLAMA_BASE = address.format(host)

    assert check_upstream() == []


@pytest.mark.parametrize("scheme", ["file", "gopher", "ftp", "unix", "dict", "", "http+unix"])
def test_a_model_server_speaks_http(settings: Any, scheme: str) -> None:
    settings.OLLAMA_BASE = f"{scheme}://127.0.0.1:11434/"

    assert [error.id for error in check_upstream()] == ["gateway.E001"]


def check(*options: str, **env: str) -> subprocess.CompletedProcess[str]:
    given = {"DJANGO_SETTINGS_MODULE": "config.settings", "SECRET_KEY": SECRET, **env}
    return subprocess.run(
        [sys.executable, "manage.py", "check", *options],
        cwd=ROOT,
        env={**os.environ, **given},
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_good_settings_start() -> None:
    result = check("--deploy")

    assert result.returncode == 0 and "WARNING" not in result.stderr


@pytest.mark.parametrize("pool", ["8", "0"])
def test_what_the_databases_address_asks_of_the_connection_is_kept(pool: str) -> None:
    """Or a certificate that was to be verified would not be."""
    show = (
        "from config.settings import DATABASES; print(DATABASES['default']['OPTIONS']['sslmode'])"
    )
    url = "postgres://gateway@db1,db2/gateway?sslmode=verify-full"
    env = {**os.environ, "DATABASE_URL": url, "DATABASE_POOL_SIZE": pool}

    done = subprocess.run(
        [sys.executable, "-c", show], cwd=ROOT, env=env, capture_output=True, text=True, timeout=60
    )

    assert done.stdout == "verify-full\n", done.stderr


def test_who_develops_may_debug() -> None:
    assert check(DEBUG="on").returncode == 0


@pytest.mark.parametrize(
    ("name", "value", "number"),
    [("SECRET_KEY", "short", "accounts.E001"), ("DEBUG", "on", "accounts.E004")],
)
def test_bad_settings_stop_the_server_too(name: str, value: str, number: str) -> None:
    command = [sys.executable, "-m", "gunicorn", "-c", "config/gunicorn.py", "config.wsgi"]
    env = {**os.environ, "DJANGO_SETTINGS_MODULE": "config.settings", name: value}

    result = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=60)

    assert result.returncode != 0 and number in result.stderr


@pytest.mark.parametrize(("env", "number"), BAD.values(), ids=BAD.keys())
def test_bad_settings_do_not(env: dict[str, str], number: str) -> None:
    result = check("--deploy", **env)

    assert result.returncode != 0 and number in result.stderr
