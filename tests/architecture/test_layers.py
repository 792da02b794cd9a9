"""The import contracts of pyproject.toml hold, and a forbidden import breaks them."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.once  # It needs no database.

ROOT = Path(__file__).resolve().parents[2]
APPS = ("accounts", "gateway", "billing", "backoffice", "config", "embedded")
LINT = Path(sys.executable).with_name("lint-imports")
# Each file with a line that must break a contract when it is added.
PLANTED = {
    "accounts/keys.py": "from billing import ledger",
    "gateway/views/inference.py": "import billing.ledger",
    "billing/ledger.py": "from gateway import upstream",
    "billing/views.py": "def later():\n    from config import urls",
    "billing/meter.py": "from backoffice.admin import formats",
    "backoffice/forms/money.py": "from config import urls",
    "backoffice/templatetags/backoffice_menu.py": "from gateway import providers",
    "embedded/engine.py": "from billing import pricing",
}


def lint(folder: Path) -> "subprocess.CompletedProcess[str]":
    command = [str(LINT), "--no-cache", "--config", "pyproject.toml"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of the apps and of their contracts."""
    for app in APPS:
        shutil.copytree(ROOT / app, tmp_path / app, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def test_the_contracts_hold(checkout: Path) -> None:
    done = lint(checkout)

    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("file", PLANTED)
def test_a_forbidden_import_breaks_a_contract(file: str, checkout: Path) -> None:
    with (checkout / file).open("a") as source:
        source.write(f"\n{PLANTED[file]}\n")

    done = lint(checkout)

    assert done.returncode == 1 and "BROKEN" in done.stdout, done.stdout
