"""Settings that cannot work stop the start, with one clear line each."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from config.environment import Environment, old_names, read_server
from gateway.checks import check_upstream

pytestmark = pytest.mark.once  # It needs no database.

ROOT = Path(__file__).resolve().parents[2]
# What the README showed once, and people pasted.
PLACEHOLDER = "…50 random characters or more; make run writes one…"
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


# --- Values that cannot be read ------------------------------------------------------------------

UNREADABLE = {
    "a number in letters": ({"DEFAULT_COMPLETION_TOKENS": "abc"}, "DEFAULT_COMPLETION_TOKENS must"),
    "an endless number": ({"UPSTREAM_TOTAL_SECONDS": "inf"}, "UPSTREAM_TOTAL_SECONDS must"),
    "a misspelt database": ({"DATABASE_URL": "postgress://u:pa55@h/x"}, "DATABASE_URL must"),
    "half a yes": ({"BEHIND_TLS_PROXY": "maybe"}, "BEHIND_TLS_PROXY must be on or off"),
    "a misspelt name": ({"OLAMA_BASE": "http://127.0.0.1:1"}, "did you mean OLLAMA_BASE?"),
    "a port in letters": ({"GATEWAY_PORT": "http"}, "GATEWAY_PORT must be a whole number"),
}
PROGRAMS = {
    "manage.py": ["manage.py", "check"],
    "gunicorn": ["-m", "gunicorn", "-c", "config/gunicorn.py", "config.wsgi"],
    "make run": ["-m", "config.run"],
}


def start(program: str, env: dict[str, str], file: Path) -> subprocess.CompletedProcess[str]:
    """Run a program with the settings of a file; it is expected to end by itself."""
    given = {"DJANGO_SETTINGS_MODULE": "config.settings", "SECRET_KEY": SECRET, **env}
    return subprocess.run(
        [sys.executable, *PROGRAMS[program]],
        cwd=ROOT,
        env={**os.environ, "ENV_FILE": str(file), **given},
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize(("env", "line"), UNREADABLE.values(), ids=UNREADABLE.keys())
def test_a_value_that_cannot_be_read_is_one_clear_line(
    tmp_path: Path, program: str, env: dict[str, str], line: str
) -> None:
    result = start(program, env, tmp_path / "none.env")

    said = [each for each in result.stderr.splitlines() if "] [INFO] " not in each]
    assert result.returncode != 0
    assert len(said) == 1 and line in said[0], said
    assert "pa55" not in result.stderr + result.stdout


def test_all_that_is_wrong_in_the_file_is_said_at_once(tmp_path: Path) -> None:
    file = tmp_path / "my.env"
    file.write_text("OLAMA_BASE=x\nDEBUG=perhaps\nMAX_IMAGES = 3\nSECRET_KEY = very secret\n")

    result = start("manage.py", {}, file)

    assert result.returncode != 0 and "very secret" not in result.stderr
    for part in ("OLAMA_BASE", "DEBUG must be", "Line 3 of", "Line 4 of"):
        assert part in result.stderr, result.stderr


def test_the_file_sets_what_gunicorn_reads_too(tmp_path: Path) -> None:
    file = tmp_path / "my.env"
    file.write_text("GATEWAY_PORT=8123\nDRAIN_SECONDS=70\nCLIENT_SECONDS='3'\nACCESS_LOG=off\n")

    env = Environment({"GATEWAY_HOST": "10.0.0.1", "DRAIN_SECONDS": ""}, file)
    server = read_server(env)

    assert (server.host, server.port, server.client_seconds) == ("10.0.0.1", 8123, 3.0)
    assert server.drain_seconds == 25 and not server.access_log
    env.refuse()


def test_a_name_that_other_programs_set_is_not_read_and_is_told(tmp_path: Path) -> None:
    env = Environment({"HOST": "x86_64-conda-linux-gnu", "PORT": "1"}, tmp_path / "none")

    assert read_server(env).host == "127.0.0.1"
    assert [line.split()[0] for line in old_names(env)] == ["HOST", "PORT"]
    assert not old_names(Environment({"HOST": "x", "GATEWAY_HOST": "::1"}, tmp_path / "none"))


def test_the_secret_that_the_readme_shows_is_refused() -> None:
    [block] = re.findall(r"```ini\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    [shown] = re.findall(r"^SECRET_KEY=(.*)$", block, re.MULTILINE)

    assert "accounts.E001" in check("--deploy", SECRET_KEY=shown).stderr
    assert "accounts.E001" in check("--deploy", SECRET_KEY=PLACEHOLDER).stderr


def test_a_secret_of_random_digits_is_a_good_one() -> None:
    assert "accounts.E001" not in check("--deploy", SECRET_KEY="0123456789abcdef" * 4).stderr


@pytest.mark.parametrize("pool", ["8", "0"])
@pytest.mark.parametrize("program", ["manage.py migrate", "make run"])
def test_a_database_that_is_not_there_is_one_line_with_the_reason(
    tmp_path: Path, program: str, pool: str
) -> None:
    command = ["-m", "config.run"] if program == "make run" else ["manage.py", "migrate"]
    url = "postgres://gateway:pa55@127.0.0.1:9/gateway"
    env = {"DATABASE_URL": url, "DATABASE_POOL_SIZE": pool, "ENV_FILE": str(tmp_path / ".env")}
    env["DJANGO_SETTINGS_MODULE"] = "config.settings"

    result = subprocess.run(
        [sys.executable, *command],
        cwd=ROOT,
        env={**os.environ, "SECRET_KEY": SECRET, **env, "GATEWAY_PORT": "0"},
        capture_output=True,
        text=True,
        timeout=60,
    )

    [line] = result.stderr.strip().splitlines()
    assert result.returncode != 0 and line.startswith("The database cannot be used: ")
    assert "port 9 failed: Connection refused" in line and "pa55" not in line
