"""What is installed is what was pinned, and nothing else runs at a start.

A stolen release came to others as a file that Python runs at every start. So every file that is
installed has its hash in the repository, and the few files of that kind are named here.
"""

import re
import site
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import metadata
from pathlib import Path
from threading import Event, Thread

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.architecture.audit import MAY_SKIP, audit

pytestmark = pytest.mark.once  # It needs no database.

ROOT = Path(__file__).resolve().parents[2]
SETS = ("requirements", "requirements-dev", "requirements-embedded")
FILES = sorted(ROOT.glob("requirements*"))
# What Python may run at every start, by its text; each with its reason.
STARTERS = {
    # setuptools, which `python -m venv` of Python 3.11 brings along: its distutils comes first.
    "distutils-precedence.pth": (
        "import os; var = 'SETUPTOOLS_USE_DISTUTILS'; enabled = os.environ.get(var, 'local') == "
        "'local'; enabled and __import__('_distutils_hack').add_shim();"
    ),
    # coverage, which measures subprocesses where its variable asks for it.
    "a1_coverage.pth": (
        'import sys; exec(\'import os\\n\\nif os.getenv("COVERAGE_PROCESS_START") or '
        'os.getenv("COVERAGE_PROCESS_CONFIG"):\\n try:\\n  import coverage\\n except:\\n  pass\\n '
        'else:\\n  coverage.process_startup(slug="pth")\')'
    ),
}


@dataclass(frozen=True)
class Pin:
    """One package of a compiled file."""

    asked: Requirement
    hashes: tuple[str, ...]
    via: frozenset[str]

    @property
    def name(self) -> str:
        return canonicalize_name(self.asked.name)

    @property
    def version(self) -> str:
        [one] = self.asked.specifier
        return one.version if one.operator == "==" else ""


def pin(block: str) -> Pin:
    first, *rest = block.splitlines()
    via = [line.split("#")[1].removeprefix(" via").strip() for line in rest if "#" in line]
    hashes = re.findall(r"^    --hash=sha256:([0-9a-f]{64})(?: \\)?$", block, re.MULTILINE)
    return Pin(Requirement(first.removesuffix("\\")), tuple(hashes), frozenset(filter(None, via)))


@cache
def compiled(name: str) -> list[Pin]:
    """Return what a compiled file installs; whatever is not indented there is a package."""
    text = re.sub(r"\A(#.*\n)+", "", (ROOT / f"{name}.txt").read_text())
    return [pin(block) for block in re.split(r"\n(?=\S)", text.strip())]


def asked(name: str) -> set[str]:
    """Return the packages, as name==version, that people asked for in a .in file itself."""
    lines = (ROOT / f"{name}.in").read_text().splitlines()
    wanted = [Requirement(line) for line in lines if line and line[0] not in "#-"]
    return {f"{canonicalize_name(one.name)}{one.specifier}" for one in wanted}


@pytest.mark.parametrize("name", SETS)
def test_every_package_has_a_version_and_a_hash(name: str) -> None:
    assert compiled(name)
    assert [one.asked for one in compiled(name) if not one.version or not one.hashes] == []


@pytest.mark.parametrize("name", SETS)
def test_what_is_asked_for_is_what_is_compiled(name: str) -> None:
    direct = [one for one in compiled(name) if f"-r {name}.in" in one.via]

    assert {f"{one.name}=={one.version}" for one in direct} == asked(name)


@pytest.mark.parametrize("name", SETS)
def test_nothing_is_compiled_that_nobody_needs(name: str) -> None:
    names = {one.name for one in compiled(name)}
    reasons = names | {f"-r {other}.in" for other in SETS}

    assert [one.name for one in compiled(name) if not one.via & reasons] == []


def test_what_is_tested_is_what_runs() -> None:
    """Markers may differ, and do where a tool needs everywhere what the gateway needs here."""
    tested = {(one.name, one.version, one.hashes) for one in compiled("requirements-dev")}

    assert {(one.name, one.version, one.hashes) for one in compiled("requirements")} <= tested


def test_at_most_fifteen_packages_are_asked_for_to_run() -> None:
    assert len(asked("requirements")) <= 15


def test_what_is_installed_is_what_is_pinned() -> None:
    here = [
        one
        for one in compiled("requirements")
        if not one.asked.marker or one.asked.marker.evaluate()
    ]

    assert {one.name: metadata.version(one.name) for one in here} == {
        one.name: one.version for one in here
    }


def test_only_what_is_named_here_runs_at_every_start() -> None:
    users = [site.getusersitepackages()] if site.ENABLE_USER_SITE else []
    folders = [Path(place) for place in (*site.getsitepackages(), *users)]
    kinds = ("*.pth", "sitecustomize*", "usercustomize*")
    found = [path for folder in folders for kind in kinds for path in folder.glob(kind)]

    assert [path for path in found if STARTERS.get(path.name) != path.read_text().strip()] == []


def test_no_requirement_names_a_place_to_fetch_it_from() -> None:
    places = re.compile(r"//|@|-index|-find-links|-trusted-host|^-[if] |\w\.(com|org|net|io)\b")

    for path in FILES:
        for line in path.read_text().splitlines():
            assert not places.search(line), f"{path.name}: {line}"


def test_nothing_is_installed_without_its_hashes() -> None:
    make = (ROOT / "Makefile").read_text().replace("\\\n", "")
    pages = [ROOT / "README.md", *FILES, *(ROOT / "docs").glob("*.md")]
    text = "\n".join(page.read_text() for page in pages)
    installs = re.findall(r".*pip install.*", make)
    installs += re.findall(r".*pip install.*requirements.*", text)

    assert len(installs) >= 3
    assert [line for line in installs if "--require-hashes" not in line] == []


VULNERABLE = b"""{"vulns": [{"id": "PYSEC-0-1", "summary": "a hole", "affected": [{
    "package": {"ecosystem": "PyPI", "name": "asgiref"}, "versions": ["3.13.0"]}]}]}"""


@contextmanager
def advisories(answer: bytes | None) -> Iterator[str]:
    """Yield the address of a source of advisories; without an answer it lets everybody wait."""
    over = Event()

    class Source(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            if answer is None:
                over.wait(30)
                return
            self.send_response(200)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Source)
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        over.set()
        server.shutdown()
        server.server_close()


def test_an_audit_that_finds_nothing_is_good(capsys: pytest.CaptureFixture[str]) -> None:
    with advisories(b"{}") as url:
        assert audit("--osv-url", url) == 0

    assert re.search(r"^\d\d+ packages audited, 0 to look at\.$", capsys.readouterr().out)


def test_a_vulnerability_fails_the_audit(capsys: pytest.CaptureFixture[str]) -> None:
    with advisories(VULNERABLE) as url:
        assert audit("--osv-url", url) == 1

    assert "asgiref" in (said := capsys.readouterr().out) and "PYSEC-0-1" in said


def test_an_audit_that_cannot_ask_fails(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(MAY_SKIP, raising=False)
    with advisories(None) as url:
        assert audit("--osv-url", url, seconds=2) == 2
        assert audit("--osv-url", url, "--timeout", "1") == 2
    assert audit("--osv-url", url) == 2

    said = capsys.readouterr().out
    assert said.count("Not audited: the advisories cannot be reached.") == said.count(MAY_SKIP) == 3


def test_where_it_is_allowed_it_says_that_it_was_skipped(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(MAY_SKIP, "on")
    with advisories(None) as url:
        pass

    assert audit("--osv-url", url) == 0
    assert capsys.readouterr().out == "Skipped: the advisories cannot be reached.\n"


def test_an_audit_that_is_broken_fails() -> None:
    assert audit("--requirement", "no-such-file.txt") == 1
