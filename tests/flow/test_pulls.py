"""The timeouts of responses do not apply to a pull, which may take hours."""

from typing import Any

from tests.fakes.ollama import FakeOllama
from tests.fakes.script import Line, Sleep
from tests.harness.callers import Caller


def test_a_pull_may_exceed_the_timeouts_of_responses(
    olga: Caller, ollama: FakeOllama, settings: Any
) -> None:
    settings.UPSTREAM_SILENCE_SECONDS = settings.UPSTREAM_TOTAL_SECONDS = 0.2
    steps = [Line({"status": "verifying sha256 digest"}), Sleep(0.7), Line({"status": "success"})]
    ollama.answer("/api/pull", steps)

    answer = olga.post("/models/pull", model="llama3")

    assert (answer.status_code, answer.json()) == (200, {"status": "success"})
