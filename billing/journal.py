"""What could not be settled while the database was away, kept on this machine's disk.

An append-only file for each process, a line for each answer that ended, on the disk before the
client sees the end. The keeper replays it when the database is back, and takes over the files of
processes that died. Replaying twice is harmless: the ledger's gate lets each hold end once.

Whoever writes or replays a file holds its lock, which the kernel takes back when he dies: so no
file is read that still grows, none is read by two, and none is forgotten. A file's name begins with
the name of the process that wrote it, whoever replays it.
"""

import contextlib
import errno
import fcntl
import json
import logging
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from io import FileIO
from pathlib import Path
from uuid import UUID, uuid4

from django.conf import settings

from billing import workers
from gateway.metering import CountSource, Outcome, Usage

logger = logging.getLogger(__name__)

SUFFIX = ".ndjson"

_lock = threading.Lock()
# What this process writes to; none until there is something to write.
_own: FileIO | None = None
# What the disk did not take either. It lasts as long as this process, and is tried first.
_unwritten: "deque[Ending]" = deque()


@dataclass(frozen=True, slots=True)
class Ending:
    """How an answer ended, as it is to be settled."""

    request_id: UUID
    usage: Usage
    outcome: Outcome
    billed: bool


# --- Write --------------------------------------------------------------------------------------


def write(ending: Ending) -> None:
    """Put an ending on the disk, durably; where that cannot be keep it here and raise OSError."""
    line = json.dumps(asdict(ending), default=str) + "\n"
    try:
        with _lock:
            _append(line.encode("ascii"))
    except OSError:
        _unwritten.append(ending)
        raise


def _append(line: bytes) -> None:
    global _own
    _own = _own or _new_file()
    # A full disk may have left half a line there; the newline ends it.
    data = b"\n" + line if _own.tell() else line
    if _own.write(data) != len(data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    os.fsync(_own.fileno())


def _new_file() -> FileIO:
    _folder().mkdir(parents=True, exist_ok=True)
    path = _folder() / f"{workers.file_name(workers.identity())}.{uuid4().hex}.new"
    file = path.open("xb", buffering=0)
    _is_locked(file)
    # Under its own name only when it is locked: another would find it empty, and remove it.
    path.rename(path.with_suffix(SUFFIX))
    _sync_folder()
    return file


def _sync_folder() -> None:
    """Put the names of the files on the disk too."""
    folder = os.open(_folder(), os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


# --- Replay -------------------------------------------------------------------------------------


def replay(settle: Callable[[Ending], None]) -> int:
    """Settle what stands in our journal and in those of the dead; return how many lines.

    What `settle` raises stops the replay; the file stays, and the next replay reads it again.
    """
    done = 0
    while _unwritten:
        settle(_unwritten[0])
        _unwritten.popleft()
        done += 1
    let_go()
    for path in sorted(_folder().glob("*" + SUFFIX)):
        done += _replay_file(path, settle)
    return done


def owners() -> set[str]:
    """Return the processes, as `workers.file_name`, of which a journal waits to be replayed."""
    return {path.name.partition(".")[0] for path in _folder().glob("*" + SUFFIX)}


def let_go() -> None:
    """Write to our file no more, so that it can be replayed; the next ending begins another."""
    global _own
    with _lock:
        if _own is not None:
            _own.close()
        _own = None


def _replay_file(path: Path, settle: Callable[[Ending], None]) -> int:
    """Settle a file's lines and remove it, unless another holds it; return how many."""
    done = 0
    with contextlib.ExitStack() as stack:
        try:
            file = stack.enter_context(path.open("rb", buffering=0))
        except FileNotFoundError:
            return 0  # Another was quicker.
        except OSError as error:
            logger.error("The journal %s cannot be read: %s", path.name, error)
            return 0
        if not _is_locked(file):
            return 0
        for ending in _endings(file.read().decode("ascii", "replace")):
            settle(ending)
            done += 1
        path.unlink(missing_ok=True)
    return done


def _is_locked(file: FileIO) -> bool:
    """Take a file's lock for as long as it is open; tell whether nobody else has it."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _endings(text: str) -> Iterator[Ending]:
    for line in filter(str.strip, text.split("\n")):
        try:
            yield _read(json.loads(line))
        except (ValueError, KeyError, TypeError):
            # Half a line: the disk was full or the power went, so its client saw no cost. Or one of
            # a later version. It goes to the log whole; it holds numbers only.
            logger.error("A line of the journal cannot be read: %r", line[:1000])


def _read(found: dict[str, object]) -> Ending:
    usage = found["usage"]
    if not isinstance(usage, dict):
        raise TypeError("usage")
    counted = Usage(**{**usage, "source": CountSource(usage["source"])})
    return Ending(
        request_id=UUID(str(found["request_id"])),
        usage=counted,
        outcome=Outcome(str(found["outcome"])),
        billed=found["billed"] is True,
    )


def _folder() -> Path:
    return Path(settings.JOURNAL_DIR)
