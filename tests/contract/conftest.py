"""The server under test, its models, and the table at the end."""

from collections.abc import Iterator
from typing import Any

import pytest

from tests.contract.server import MODELS, Server, given_models, real_url
from tests.fakes.ollama import FakeOllama

FAKES = {
    "chat": ("plain-chat:latest", "plain-native:latest"),
    "tools": ("llama3:latest", "native-tools:latest"),
    "thinking": ("deepthink:latest",),
    "embedding": ("nomic-embed-text:latest",),
}
SCRIPTED = "a fault or a delay that only the fake can be told to have"


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", f"scripted: needs {SCRIPTED}")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Give a test each model of the fake that can do what it asks for, or the real server's."""
    for name in set(MODELS) & set(metafunc.fixturenames):
        if not real_url():
            metafunc.parametrize(name, FAKES[name])
        elif name in given_models():
            metafunc.parametrize(name, [given_models()[name]])
        else:
            why = pytest.mark.skip(reason=f"no {name.upper()} model was given")
            metafunc.parametrize(name, [pytest.param("", marks=why)])


@pytest.fixture(scope="session")
def real() -> Iterator[Server | None]:
    """The real server. Its models are restored afterwards."""
    if not real_url():
        yield None
        return
    found = Server(real_url())
    before = found.loaded()
    yield found
    found.tidy(before)


@pytest.fixture
def server(real: Server | None, request: pytest.FixtureRequest) -> Iterator[Server]:
    if real is not None:
        if request.node.get_closest_marker("scripted"):
            pytest.skip(f"needs {SCRIPTED}")
        yield real
        return
    names = tuple(name for names in FAKES.values() for name in names)
    with FakeOllama(names) as fake:
        fake.memory.models = []
        yield Server(fake.url, fake)


@pytest.fixture
def fake(server: Server) -> FakeOllama:
    assert server.fake is not None
    return server.fake


# --- The table ------------------------------------------------------------------------------------

_facts: list[tuple[str, str, str]] = []


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: Any) -> Iterator[None]:
    outcome: Any = yield
    report = outcome.get_result()
    if not real_url() or not (report.when == "call" or report.skipped or report.failed):
        return
    about = (getattr(item, "function", item).__doc__ or item.name).strip().splitlines()[0]
    reason = ""
    if report.skipped and isinstance(report.longrepr, tuple):
        reason = report.longrepr[2].removeprefix("Skipped: ")
    elif report.failed:
        reason = str(getattr(call.excinfo, "value", "")).splitlines()[0][:70]
    held = {"passed": "holds", "skipped": "not asked"}.get(report.outcome, "does not hold")
    _facts.append((held, about, reason))


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if not real_url() or not _facts:
        return
    version = Server(real_url()).version()
    terminalreporter.section(f"Ollama {version} at {real_url()}")
    for held, about, reason in _facts:
        terminalreporter.write_line(f"{held:14} {about}" + (f"  [{reason}]" if reason else ""))
    for held in ("holds", "does not hold", "not asked"):
        count = sum(fact[0] == held for fact in _facts)
        terminalreporter.write_line(f"{count:4} {held}")
