"""Scripts for the fake Ollama: an answer is a list of steps, played one after another.

For example: fake.answer("/api/generate", tokens(["Hel", "lo"], done=False), Sleep(0.2), Reset())
"""

import json
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, ClassVar

NDJSON = "application/x-ndjson"
JSON = "application/json; charset=utf-8"
TEXT = "text/plain"
CREATED_AT = "2026-01-01T00:00:00.000000001Z"
# The longest wait of a step.
LONGEST_WAIT = 60.0


class _Omit:
    def __repr__(self) -> str:
        return "OMIT"


# For `tokens`: leave this count out of the final object.
OMIT: Any = _Omit()


class Interrupted(Exception):
    """The client disconnected, or the fake closed the connection, during a script."""


class Answer:
    """One HTTP response. The steps call its methods."""

    def __init__(
        self,
        write: Callable[[bytes], None],
        wake: threading.Event | None = None,
        head_only: bool = False,
    ) -> None:
        self._write = write
        self._wake = wake or threading.Event()
        self._head_only = head_only
        self._begun = False
        self._chunked = False
        self._until_close = False
        self.lines = 0
        # How the connection goes on afterwards: "", "keep", "close" or "reset".
        self.ending = ""

    def play(self, steps: Sequence["Step"], settle: Callable[[], None] = lambda: None) -> None:
        """Play the steps; `settle` is called just before the last of the answer goes out."""
        last = _last_output(steps)
        for number, step in enumerate(steps):
            if number >= last and step.instant:
                settle()
            step.play(self)
            if self.ending:
                return
        settle()
        if self._until_close:
            self.ending = "close"
        else:
            self.end()

    def start(self, status: int, headers: Mapping[str, str | None], chunked: bool = True) -> None:
        """Send the status line and headers, except headers that are None."""
        self._begun = True
        wanted: dict[str, str | None] = {"Content-Type": NDJSON if status < 400 else JSON}
        wanted |= {name.title(): value for name, value in headers.items()}
        bodiless = status in (204, 304)
        self._chunked = chunked and "Content-Length" not in wanted and not bodiless
        if self._chunked:
            wanted.setdefault("Transfer-Encoding", "chunked")
        elif "Content-Length" not in wanted and not bodiless:
            self._until_close = True
            wanted["Connection"] = "close"
        lines = [f"HTTP/1.1 {status} {_phrase(status)}"]
        lines += [f"{name}: {value}" for name, value in wanted.items() if value is not None]
        self._write("\r\n".join([*lines, "", ""]).encode("latin-1"))

    def send(self, data: bytes) -> None:
        """Send bytes of the body, as one chunk; without a `Status` before, a 200 goes first."""
        if not self._begun:
            self.start(200, {})
        # Counted first: the client may read the bytes and check the count at once.
        self.lines += data.count(b"\n")
        if data and not self._head_only:
            self._write(b"%x\r\n%b\r\n" % (len(data), data) if self._chunked else data)

    def wire(self, data: bytes) -> None:
        self._until_close = True
        self._write(data)

    def pause(self, seconds: float) -> None:
        if self._wake.wait(seconds):
            raise Interrupted

    def wait(self, event: threading.Event) -> None:
        deadline = time.monotonic() + LONGEST_WAIT
        while not event.wait(0.005) and time.monotonic() < deadline:
            self.pause(0)

    def end(self) -> None:
        if not self._begun and not self._until_close:
            self.start(200, {})
        if self._chunked and not self._head_only:
            self._write(b"0\r\n\r\n")
        self.ending = "close" if self._until_close and not self._chunked else "keep"


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Unknown"


# --- Steps ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Step:
    """One event on the connection. `instant` unless it takes time."""

    instant: ClassVar[bool] = True

    def play(self, answer: Answer) -> None:
        raise NotImplementedError


@dataclass(frozen=True)
class Status(Step):
    """Send the head now: chunked, or with the Content-Length given, or up to the close."""

    code: int = 200
    headers: Mapping[str, str | None] = field(default_factory=dict)
    chunked: bool = True

    def play(self, answer: Answer) -> None:
        answer.start(self.code, self.headers, self.chunked)


@dataclass(frozen=True)
class Line(Step):
    """One line of the body, as one chunk; an object becomes JSON."""

    content: Mapping[str, Any] | bytes | str

    def play(self, answer: Answer) -> None:
        answer.send(_bytes(self.content) + b"\n")


@dataclass(frozen=True)
class Raw(Step):
    """Exactly these bytes of the body, as one chunk."""

    data: bytes

    def play(self, answer: Answer) -> None:
        answer.send(self.data)


@dataclass(frozen=True)
class Wire(Step):
    """Bytes past all HTTP framing; the connection closes after the script unless `End` ends it."""

    data: bytes

    def play(self, answer: Answer) -> None:
        answer.wire(self.data)


@dataclass(frozen=True)
class Sleep(Step):
    """Wait some seconds, or until the client disconnects."""

    seconds: float
    instant: ClassVar[bool] = False

    def play(self, answer: Answer) -> None:
        answer.pause(self.seconds)


@dataclass(frozen=True)
class Stall(Step):
    """Wait until the client disconnects or the fake stops."""

    instant: ClassVar[bool] = False

    def play(self, answer: Answer) -> None:
        answer.pause(LONGEST_WAIT)


@dataclass(frozen=True)
class Wait(Step):
    """Wait until a test sets the event."""

    event: threading.Event
    instant: ClassVar[bool] = False

    def play(self, answer: Answer) -> None:
        answer.wait(self.event)


@dataclass(frozen=True)
class Close(Step):
    """Close the connection here: no last chunk."""

    def play(self, answer: Answer) -> None:
        answer.ending = "close"


@dataclass(frozen=True)
class Reset(Step):
    """Reset the connection here (RST)."""

    def play(self, answer: Answer) -> None:
        answer.ending = "reset"


@dataclass(frozen=True)
class End(Step):
    """End the response properly. Every script ends with it implicitly."""

    def play(self, answer: Answer) -> None:
        answer.end()


def _last_output(steps: Sequence[Step]) -> int:
    endings = (End, Close, Reset)
    return max((n for n, step in enumerate(steps) if not isinstance(step, endings)), default=0)


def _bytes(content: Mapping[str, Any] | bytes | str) -> bytes:
    if isinstance(content, bytes):
        return content
    return content.encode() if isinstance(content, str) else json.dumps(content).encode()


# --- Ready-made scripts ---------------------------------------------------------------------


def flatten(steps: Iterable[Any]) -> list[Step]:
    """Return steps and lists of steps as one list."""
    flat: list[Step] = []
    for step in steps:
        flat += [step] if isinstance(step, Step) else flatten(step)
    return flat


def rendered(*steps: Any) -> bytes:
    """Every byte a script would put on the wire, for scripts that cut it at byte N."""
    written: list[bytes] = []
    Answer(written.append).play(flatten(steps))
    return b"".join(written)


def reply(
    content: Mapping[str, Any] | bytes | str, status: int = 200, **headers: str
) -> list[Step]:
    """A whole answer with Content-Length: an object as JSON, bytes and text as they are."""
    data = _bytes(content)
    kind = JSON if isinstance(content, Mapping) else TEXT
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return [
        Status(status, {"Content-Type": kind, "Content-Length": str(len(data))} | named),
        Raw(data),
    ]


def error_line(text: str) -> Line:
    """The line that Ollama writes when it fails in mid-stream."""
    return Line({"error": text})


def slices(data: bytes, size: int, pause: float = 0.0) -> list[Step]:
    """Bytes of the body in chunks of `size`, whatever line or character they cut."""
    return _spread((Raw(data[at : at + size]) for at in range(0, len(data), size)), pause)


def dribble(data: bytes, size: int = 1, pause: float = 0.05) -> list[Step]:
    """Raw bytes of the connection, `size` at a time: headers that arrive slowly."""
    return _spread((Wire(data[at : at + size]) for at in range(0, len(data), size)), pause)


def tokens(
    pieces: Iterable[str],
    *,
    prompt: Any = 5,
    count: Any = None,
    path: str = "/api/generate",
    model: str = "llama3",
    pause: float = 0.0,
    done: bool = True,
    reason: Any = "stop",
    thinking: Iterable[str] = (),
    tool_calls: Sequence[Mapping[str, Any]] = (),
    **extra: Any,
) -> list[Step]:
    """A streamed response, chunk by chunk, and its final object.

    `count` is the number of pieces unless told otherwise; both counts may lie.
    `done=False` leaves the final object out; `extra` fields go into it. Any field may be `OMIT`.
    """
    shape = _shape(path, model)
    said = [shape("", thought) for thought in thinking] + [shape(piece, "") for piece in pieces]
    called = [shape("", "", list(tool_calls))] if tool_calls else []
    counted = len(said) if count is None else count
    final = _final(shape("", ""), prompt, counted, reason, extra)
    return _spread(map(Line, said + called + ([final] if done else [])), pause)


def _final(
    chunk: dict[str, Any], prompt: Any, count: Any, reason: Any, extra: Mapping[str, Any]
) -> dict[str, Any]:
    """The object that ends an answer: a chunk with the counts."""
    final = chunk | {
        "done": True,
        "done_reason": reason,
        "total_duration": 5_000_000,
        "load_duration": 1_000_000,
        "prompt_eval_count": prompt,
        "prompt_eval_duration": 1_000_000,
        "eval_count": count,
        "eval_duration": 3_000_000,
        **extra,
    }
    return {name: value for name, value in final.items() if value is not OMIT}


def _shape(path: str, model: str) -> Callable[..., dict[str, Any]]:
    """Return the object of a chunk on this route, from text, reasoning and tool calls."""

    def chunk(piece: str, thought: str, calls: Sequence[Any] = ()) -> dict[str, Any]:
        said: dict[str, Any] = {"thinking": thought} if thought else {}
        said |= {"tool_calls": calls} if calls else {}
        body = {"response": piece} | said
        if path == "/api/chat":
            body = {"message": {"role": "assistant", "content": piece} | said}
        return {"model": model, "created_at": CREATED_AT, **body, "done": False}

    return chunk


def _spread(steps: Iterable[Step], pause: float) -> list[Step]:
    """The steps with a pause between each two."""
    if not pause:
        return list(steps)
    spread = [step for each in steps for step in (each, Sleep(pause))]
    return spread[:-1]
