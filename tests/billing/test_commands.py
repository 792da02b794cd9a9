"""Every management command runs in a process of its own, as the documents tell operators to."""

import re
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest
from django.core.management import get_commands, load_command_class
from django.core.management.base import BaseCommand

from tests.fakes.ollama import FakeOllama
from tests.servers.gunicorn import manage

pytestmark = pytest.mark.once  # The tests have a database of their own.

OUR_APPS = ("accounts", "gateway", "billing")
OUR_COMMANDS = sorted(name for name, app in get_commands().items() if app in OUR_APPS)
ROOT = Path(__file__).resolve().parents[2]
Run = Callable[..., CompletedProcess[str]]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Run a command on a new, migrated database and require that it succeeds."""
    env = {
        "DJANGO_SETTINGS_MODULE": "config.settings",
        "DATABASE_URL": f"sqlite:///{tmp_path}/gateway.sqlite3",
        "JOURNAL_DIR": str(tmp_path / "journal"),
        "OLLAMA_BASE": "http://127.0.0.1:9",
    }

    def succeed(*command: str, **more: str) -> CompletedProcess[str]:
        finished = manage(env | more, *command)
        assert finished.returncode == 0, finished.stderr
        assert "Traceback" not in finished.stderr
        return finished

    succeed("migrate", "--verbosity=0")
    return succeed


def test_an_operator_sets_up_a_customer_and_checks_the_ledger(run: Run) -> None:
    assert "prices added" in run("seed_prices").stdout
    price = run("set_price", "llama3", "--input=0.003", "--output=0.006").stdout
    assert price.startswith("llama3:latest: 0.003 / 0.006 per 1K")
    assert "'Acme' created; credit 5" in run("create_account", "Acme", "--credit=5").stdout
    assert "Acme now has 30" in run("grant", "Acme", "25", "--reason=Welcome").stdout
    issued = run("issue_key", "Acme", "--name=first").stdout
    assert re.search(r"olg_\w+", issued)
    assert "0 abandoned holds settled; 0 are open" in run("settle_holds").stdout
    reconciled = run("reconcile").stdout
    assert "ok   wallets are the sums of their entries" in reconciled and "DIFF" not in reconciled
    assert re.search(r"new database id is [0-9a-f-]{36}", run("new_database_id").stdout)
    assert "revoked" in run("revoke_key", "1").stdout


def test_check_ollama_examines_the_model_server(run: Run) -> None:
    with FakeOllama() as ollama:
        report = run("check_ollama", OLLAMA_BASE=ollama.url).stdout

    assert "llama3" in report


@pytest.mark.parametrize("name", OUR_COMMANDS)
def test_a_command_explains_itself_and_every_argument(name: str) -> None:
    command = load_command_class(get_commands()[name], name)
    parser = command.create_parser("manage.py", name)
    django_parser = BaseCommand().create_parser("manage.py", name)
    known = {action.dest for action in django_parser._actions}

    assert command.help.rstrip().endswith(".")
    own = [action for action in parser._actions if action.dest not in known]
    assert not [action.dest for action in own if not action.help]


def test_this_file_runs_every_command() -> None:
    source = Path(__file__).read_text()

    assert OUR_COMMANDS and not [name for name in OUR_COMMANDS if f'run("{name}"' not in source]
