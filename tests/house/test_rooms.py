"""The house: who may import whom, who writes what, and what no room may hold."""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from gateway import policy, rules

pytestmark = pytest.mark.once  # It needs no database.

ROOT = Path(__file__).resolve().parents[2]
APPS = ("accounts", "gateway", "billing", "config")
# From left to right; each app imports only what stands to its left.
FORBIDDEN = {
    "accounts": ("gateway", "billing", "config"),
    "gateway": ("billing", "config"),
    "billing": ("config",),
    "config": (),
}
# All that billing may know of the gateway: the port, and how models are named.
PORT = {"gateway.metering", "gateway.names"}
PURE = (
    "gateway/bodies.py",
    "gateway/catalogue.py",
    "gateway/chunk.py",
    "gateway/dialects",
    "gateway/images.py",
    "gateway/metering.py",
    "gateway/names.py",
    "gateway/policy.py",
    "gateway/prompt.py",
    "gateway/rules.py",
    "gateway/usage.py",
    "billing/pricing.py",
)
IMPURE = ("requests", "django.db.models", "django.utils.timezone", "os", "time", "random")
WRITERS = {
    "Budget": "billing/ledger.py",
    "Hold": "billing/ledger.py",
    "TokenUsage": "billing/ledger.py",
    "UsageDaily": "billing/ledger.py",
    "Entry": "billing/ledger.py",
    "ModelPrice": "billing/prices.py",
    "BillingConfig": "billing/configuration.py",
}
WRITES = {"create", "bulk_create", "update", "delete", "save", "get_or_create", "update_or_create"}


def sources(*places: str) -> Iterator[Path]:
    for place in places or APPS:
        found = ROOT / place
        yield from [found] if found.is_file() else sorted(found.rglob("*.py"))


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def imports(path: Path) -> set[str]:
    """Return every module that a file imports, also inside functions."""
    found: set[str] = set()
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    return found


@pytest.mark.parametrize("app", APPS)
def test_an_app_imports_only_to_its_left(app: str) -> None:
    for path in sources(app):
        tops = {name.partition(".")[0] for name in imports(path)}
        assert not tops & set(FORBIDDEN[app]), path


def test_billing_knows_of_the_gateway_its_port_alone() -> None:
    for path in sources("billing"):
        for name in imports(path):
            if name.startswith("gateway."):
                assert any(name == room or name.startswith(f"{room}.") for room in PORT), path


@pytest.mark.parametrize("place", PURE)
def test_pure_rooms_stay_pure(place: str) -> None:
    for path in sources(place):
        assert not imports(path) & set(IMPURE), path


def test_one_room_talks_to_the_model_server() -> None:
    rooms = {path.name for path in sources("accounts", "gateway", "billing") if uses_requests(path)}

    assert rooms == {"upstream.py"}


def uses_requests(path: Path) -> bool:
    return any(name.partition(".")[0] in ("requests", "urllib3") for name in imports(path))


@pytest.mark.parametrize("model", WRITERS)
def test_a_table_has_one_writer(model: str) -> None:
    for path in sources():
        if str(path.relative_to(ROOT)) != WRITERS[model] and "migrations" not in path.parts:
            for call in ast.walk(tree(path)):
                assert not writes(call, model), f"{path}:{getattr(call, 'lineno', 0)}"


def writes(node: ast.AST, model: str) -> bool:
    """Tell whether a node is a call like `Model.objects….update(…)`."""
    if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
        return False
    return node.func.attr in WRITES and ast.unparse(node.func.value).startswith(f"{model}.objects")


def test_no_room_is_a_lumber_room() -> None:
    names = {part for path in sources() for part in path.relative_to(ROOT).parts}

    assert not names & {"utils.py", "utils", "helpers.py", "helpers", "common", "misc.py"}


def test_files_and_functions_stay_small() -> None:
    for path in sources():
        if "migrations" in path.parts:
            continue
        assert len(path.read_text().splitlines()) <= 400, path
        for node in ast.walk(tree(path)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                assert (node.end_lineno or 0) - node.lineno <= 50, f"{path}: {node.name}"


def test_every_name_of_the_table_has_its_lookalikes_refused() -> None:
    named = {*policy.OPTIONS, *policy.CALL, *policy.MESSAGE, *policy.TOOL}
    named |= {name for rules_of_one in policy.TABLE.values() for name in rules_of_one}

    assert named <= rules.KNOWN
