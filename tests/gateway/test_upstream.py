"""The connection to the model server: one for each answer, never used again."""

import pytest

from gateway import upstream
from gateway.errors import ModelNotFound
from tests.fakes.ollama import FakeOllama
from tests.fakes.script import reply


def test_a_connection_that_the_server_closed_is_never_used_again(ollama: FakeOllama) -> None:
    """It closes each without announcing it, which a pool learns too late."""
    ollama.answer("/api/delete", reply({"error": "model 'x' not found"}, 404))

    for _ in range(100):
        with pytest.raises(ModelNotFound):
            upstream.fetch("delete", {"model": "x"})


def test_a_connection_that_the_server_keeps_open_is_closed_by_us(ollama: FakeOllama) -> None:
    ollama.answer("/api/version", reply({"version": "1"}, 200, Connection="keep-alive"))

    assert [upstream.fetch("version")["version"] for _ in range(20)] == ["1"] * 20

    ollama.wait_idle()
    assert ollama.max_in_flight == 1
