"""One answer on its way: its meter is closed once, whatever fails, and nobody watches it after."""

import threading
from collections.abc import Iterator
from typing import Any

import pytest

from gateway.dialects.ollama import OllamaRenderer, read_chunk
from gateway.errors import GatewayBusy
from gateway.hangup import Watch, watcher
from gateway.metering import NullMeter, Outcome, Receipt, Usage
from gateway.prompt import Operation, Prompt
from gateway.stream import MeteredStream
from gateway.usage import SLACK, Tally

PIECE = b'{"response": "x", "done": false}'
LAST = b'{"response": "", "done": true, "prompt_eval_count": 3, "eval_count": 2}'


class Notebook(NullMeter):
    """A meter that writes down what it is told."""

    def __init__(self) -> None:
        self.noted: list[int] = []
        self.closed: list[tuple[Usage, Outcome]] = []

    def progress(self, completion_tokens: int) -> None:
        self.noted.append(completion_tokens)

    def close(self, usage: Usage, outcome: Outcome) -> Receipt | None:
        self.closed.append((usage, outcome))
        return None


class Lines:
    """An answer of these lines."""

    def __init__(self, *lines: bytes) -> None:
        self._lines = lines
        self.open = True

    def lines(self) -> Iterator[bytes]:
        yield from self._lines

    def close(self) -> None:
        self.open = False


@pytest.fixture
def watch() -> Iterator[Watch]:
    found = Watch(None)
    watcher.add(found)
    yield found
    watcher.remove(found)


def stream(meter: Any, watch: Watch, bound: int = 10) -> MeteredStream:
    prompt = Prompt(Operation.GENERATE, "llama3", stream=True)
    renderer = OllamaRenderer(prompt, "id")
    return MeteredStream(meter=meter, tally=Tally(5, bound), renderer=renderer, watch=watch)


def begun(meter: Any, watch: Watch, answer: Lines, bound: int = 10) -> MeteredStream:
    found = stream(meter, watch, bound)
    found.begin(lambda _watch: answer, read)  # type: ignore[arg-type,return-value]
    return found


def read(line: bytes) -> Any:
    return read_chunk(Operation.GENERATE, line)


def no_thread(*_args: Any) -> None:
    raise RuntimeError("can't start new thread")


def test_an_answer_without_a_thread_to_read_it_is_settled_and_let_go(
    watch: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    meter = Notebook()
    monkeypatch.setattr(threading.Thread, "start", no_thread)

    with pytest.raises(GatewayBusy):
        stream(meter, watch).begin(lambda _watch: Lines(PIECE), read, keep_alive=1)  # type: ignore[arg-type,return-value]

    assert meter.closed == [(Usage(), Outcome.GATEWAY_FAILED)]
    assert watch not in watcher.running()


def test_what_is_noted_for_a_crash_is_never_more_than_was_held(watch: Watch) -> None:
    meter = Notebook()

    list(begun(meter, watch, Lines(*[PIECE] * (SLACK + 6)), bound=4))

    assert meter.noted[:4] == [1, 2, 3, 4] and set(meter.noted[4:]) == {4}
