"""What a module may import and how large it may be; test_layers.py checks the layers."""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from gateway.validation import policy, rules

pytestmark = pytest.mark.once  # It needs no database.

ROOT = Path(__file__).resolve().parents[2]
APPS = ("accounts", "gateway", "billing", "backoffice", "config")
PURE = (
    "gateway/catalogue.py",
    "gateway/upstream/chunk.py",
    "gateway/dialects",
    "gateway/validation/images.py",
    "gateway/validation/isolation.py",
    "gateway/metering.py",
    "gateway/names.py",
    "gateway/validation/pattern_counts.py",
    "gateway/validation/patterns.py",
    "gateway/validation/policy.py",
    "gateway/validation/inference_request.py",
    "gateway/validation/rules.py",
    "gateway/validation/schemas.py",
    "gateway/upstream/error_mapping.py",
    "gateway/relay/token_counter.py",
    "gateway/upstream/protocol.py",
    "gateway/validation/load_requests.py",
    "billing/pricing.py",
)
# All that a pure module may import: what computes and touches nothing.
PURE_IMPORTS = {
    "base64", "binascii", "collections", "dataclasses", "datetime", "decimal", "difflib", "enum",
    "functools", "hmac", "itertools", "json",
    "math", "operator", "re", "secrets", "string", "struct", "typing", "uuid", "zlib",
    "accounts.models.Scope",
    "billing.money",
    "gateway.catalogue",
    "gateway.dialects",
    "gateway.dialects.json_fragments",
    "gateway.errors",
    "gateway.metering",
    "gateway.names",
    "gateway.relay.token_counter",
    "gateway.upstream.chunk",
    "gateway.upstream.error_mapping",
    "gateway.validation.images",
    "gateway.validation.inference_request",
    "gateway.validation.isolation",
    "gateway.validation.pattern_counts",
    "gateway.validation.patterns",
    "gateway.validation.rules",
    "gateway.validation.schemas",
    "gateway.upstream.protocol",
}  # fmt: skip


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
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("place", PURE)
def test_pure_modules_import_only_pure_modules(place: str) -> None:
    for path in sources(place):
        assert not [name for name in imports(path) if not is_pure(name)], path


def is_pure(name: str) -> bool:
    return any(name == pure or name.startswith(f"{pure}.") for pure in PURE_IMPORTS)


@pytest.mark.parametrize(
    "line",
    [
        "import socket",
        "from django.conf import settings",
        "from django.db import connection",
        "import requests",
        "from pathlib import Path",
    ],
)
def test_an_import_that_does_input_or_output_is_not_pure(line: str, tmp_path: Path) -> None:
    planted = tmp_path / "pricing.py"
    planted.write_text(line + "\n" + (ROOT / "billing/pricing.py").read_text())

    assert [name for name in imports(planted) if not is_pure(name)]


def test_two_modules_talk_to_the_model_server() -> None:
    apps = sources("accounts", "gateway", "billing")
    users = {str(path.relative_to(ROOT)) for path in apps if uses_requests(path)}

    assert users == {"gateway/upstream/client.py", "gateway/upstream/connections.py"}


def uses_requests(path: Path) -> bool:
    return any(name.partition(".")[0] in ("requests", "urllib3") for name in imports(path))


def test_no_module_is_a_collection_of_leftovers() -> None:
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


def test_no_app_overwrites_an_attribute_of_another_module() -> None:
    overwritten = {
        f"{path.relative_to(ROOT)}: {ast.unparse(target)}"
        for path in sources()
        for target in assigned_attributes(path)
        if isinstance(target.value, ast.Name) and target.value.id in imported_modules(path)
    }

    assert not overwritten


def test_an_overwritten_attribute_is_detected(tmp_path: Path) -> None:
    planted = tmp_path / "apps.py"
    planted.write_text("def ready():\n    from accounts import keys\n    keys.issue = print\n")

    assert [target.attr for target in assigned_attributes(planted)] == ["issue"]
    assert imported_modules(planted) == {"keys"}


def assigned_attributes(path: Path) -> list[ast.Attribute]:
    assignments = (node for node in ast.walk(tree(path)) if isinstance(node, ast.Assign))
    targets = [target for assignment in assignments for target in assignment.targets]
    return [target for target in targets if isinstance(target, ast.Attribute)]


def imported_modules(path: Path) -> set[str]:
    """Return the local names of this project's modules that a file imports."""
    return {name.rpartition(".")[2] for name in imports(path) if is_module(name)}


def is_module(name: str) -> bool:
    return (ROOT / name.replace(".", "/")).with_suffix(".py").is_file()
