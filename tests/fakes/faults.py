"""Scripts of a real Ollama's failures."""

from collections.abc import Sequence
from typing import Any

from tests.fakes import refusals
from tests.fakes.script import Line, Step, error_line, reply, tokens

CRASHED = "an error was encountered while running the model: unexpected EOF"
# In native mode the error contains the last output of llama-server, about other clients' requests.
NATIVE_CRASHED = (
    f"{CRASHED}\nslot update_slots: id 0 | task id = 395, request (5031 tokens) exceeds the context"
)
# Ollama ends a stream after more equal chunks than this.
REPEATS = 30


def crash(
    pieces: Sequence[str] = ("one", " two"), *, native: bool = False, **shape: Any
) -> list[Step]:
    """llama-server crashes in mid-stream: an error line and a clean end."""
    text = NATIVE_CRASHED if native else CRASHED
    return [*tokens(pieces, done=False, **shape), error_line(text)]


def crash_of_whole() -> list[Step]:
    """llama-server crashes before a response that is not streamed."""
    return reply({"error": CRASHED}, 500)


def clean_end(pieces: Sequence[str], **shape: Any) -> list[Step]:
    """A stream that ends without `done` and without counts."""
    return tokens(pieces, done=False, **shape)


def repeat_guard(piece: str = "🌟", **shape: Any) -> list[Step]:
    """A stream that Ollama ends because the model repeats itself."""
    return clean_end([piece] * (REPEATS + 1), **shape)


def clean_end_of_whole(pieces: Sequence[str], *, path: str, **shape: Any) -> list[Step]:
    """The same without streaming: a 200 with `done: false`."""
    [first] = tokens(["".join(pieces)], path=path, done=False, **shape)
    assert isinstance(first, Line) and isinstance(first.content, dict)
    return reply(first.content)


def registry_unreachable(name: str, *, stream: bool = True) -> list[Step]:
    """The registry cannot be reached, but the pull begins with a 200."""
    text = (
        f'pull model manifest: Get "https://registry.ollama.ai/v2/library/{name}": '
        "dial tcp: lookup registry.ollama.ai: no such host"
    )
    if not stream:
        return reply({"error": text}, 500)
    return [Line({"status": "pulling manifest"}), error_line(text)]


def busy() -> list[Step]:
    """The queue is full. There is no Retry-After."""
    return refusals.error(503, refusals.BUSY)
