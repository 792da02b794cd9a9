"""Call the application as a server does, with malformed requests, and judge the responses."""

import io
import logging
import signal
import time
import traceback
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, NoReturn
from urllib.parse import unquote_to_bytes

from config.security_log import in_one_line
from gateway.http.media_types import Application
from tests.faults.fuzz import Sent
from tests.faults.oracle import Answer, complaint

# A request that takes longer hangs, on any machine.
HANGS_AFTER = 60.0
# How many failures are listed.
SHOWN = 10


# --- A server's side ------------------------------------------------------------------------------


class Hung(BaseException):
    """A request did not end. Not an Exception, so that no handler swallows it."""


def hung(*_: object) -> NoReturn:
    raise Hung


def environ(sent: Sent) -> dict[str, Any]:
    """Return a request as gunicorn passes it on, without gunicorn's own rejections."""
    path, _, query = sent.target.partition(b"?")
    found: dict[str, Any] = {
        "REQUEST_METHOD": sent.method,
        "PATH_INFO": unquote_to_bytes(path).decode("latin-1"),
        "QUERY_STRING": query.decode("latin-1"),
        "RAW_URI": sent.target.decode("latin-1"),
        "SCRIPT_NAME": "",
        "SERVER_NAME": "localhost",
        "SERVER_PORT": "8000",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "REMOTE_ADDR": "127.0.0.1",
        "CONTENT_LENGTH": str(len(sent.body)),
        "wsgi.input": io.BytesIO(sent.body),
        "wsgi.errors": io.StringIO(),
        "wsgi.url_scheme": "http",
        "wsgi.input_terminated": True,
    }
    named: dict[str, list[str]] = {}
    for name, value in sent.headers:
        named.setdefault(name.decode().upper().replace("-", "_"), []).append(
            value.decode("latin-1")
        )
    for key in named:
        prefix = "" if key in ("CONTENT_TYPE", "CONTENT_LENGTH") else "HTTP_"
        found[prefix + key] = ",".join(named[key])
    return found


def call(served: Application, sent: Sent) -> tuple[str, Answer]:
    """Return the path as it was read, and the response. One that disconnects reads one piece."""
    request = environ(sent)
    began: list[Any] = []
    signal.setitimer(signal.ITIMER_REAL, HANGS_AFTER)
    try:
        response: Any = served(request, lambda *start: began.extend(start[:2]))
        pieces = iter(response)
        whole = not (sent.leaves and response.streaming)
        body = b"".join(pieces) if whole else next(pieces, b"")
        response.close()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    status, headers = began
    return request["PATH_INFO"], Answer(int(status[:3]), tuple(headers), body, whole)


# --- A run ----------------------------------------------------------------------------------------


@dataclass
class LastError:
    """Keeps the traceback of an unexpected error, which no response shows."""

    text: str = ""

    def keep(self, record: logging.LogRecord) -> None:
        in_one_line(record)  # As the log's handler does.
        if record.exc_info and record.levelno >= logging.ERROR:
            self.text = "".join(traceback.format_exception(*record.exc_info))


@dataclass
class Run:
    """The results of some requests."""

    statuses: Counter[int] = field(default_factory=Counter)
    let_in: int = 0
    asked: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0
    slowest: float = 0.0
    failed: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        total = self.statuses.total()
        wrong = sum(count for status, count in self.statuses.items() if status >= 500)
        found = ", ".join(f"{status}: {count:,}" for status, count in sorted(self.statuses.items()))
        return (
            f"{total:,} requests in {self.seconds:.0f} s, {wrong} answered 5xx; statuses: {found}; "
            f"let in: {self.let_in:,}; the model server was asked {self.asked.total():,} times; "
            f"the slowest took {self.slowest:.1f} s"
        )

    def add(self, other: "Run") -> None:
        self.statuses += other.statuses
        self.asked += other.asked
        self.let_in += other.let_in
        self.seconds += other.seconds
        self.slowest = max(self.slowest, other.slowest)

    def fails(self, what: str, name: str, sent: Sent) -> None:
        """Record a failure, unless the same one is known."""
        if what not in self.failed and len(self.failed) < SHOWN:
            self.failed[what] = f"{what}\n  FUZZ_ONE={name}\n  {shown(sent)}"


def shown(sent: Sent) -> str:
    headers = b"".join(b"%s: %s\n" % header for header in sent.headers)
    parts = [f"{name}={cut(value)}" for name, value in (("headers", headers), ("body", sent.body))]
    return "\n  ".join([f"{sent.method} {cut(sent.target)}", *parts])


def cut(value: bytes) -> str:
    return repr(value) if len(value) < 2_000 else f"{value[:1_000]!r} … {value[-200:]!r}"


def try_one(served: Application, errors: LastError, name: str, sent: Sent, run: Run) -> Answer:
    """Make a request and judge its response."""
    errors.text, began, answer = "", time.monotonic(), Answer(599, (), b"")
    try:
        path, answer = call(served, sent)
        found = complaint(sent.method, path, answer) or (errors.text and "logged a traceback")
    except Hung:
        found = f"hangs: {''.join(traceback.format_exc().splitlines(True)[-12:])}"
    except Exception:
        found = traceback.format_exc()
    if found:
        run.fails(f"{sent.route.path} {found}\n{errors.text}", name, sent)
    run.slowest = max(run.slowest, time.monotonic() - began)
    run.statuses[answer.status] += 1
    return answer
