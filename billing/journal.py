"""Settlements that could not be written while the database was away, kept on the local disk.

Each process appends to its own file, one line per settlement. The line is on the disk before the
client receives the end of the response. The lease thread replays it when the database is back, and
replays the files of processes that have exited. Replaying a line twice is harmless, because the
ledger ends each hold once.

A line names its database, since gateways of several databases may share the directory. It contains
the whole reservation, since an older backup may have been restored.

A process holds an exclusive lock on the file it writes or replays. The kernel releases it on exit,
so a file is never read while it is being written, nor replayed twice at once. A file's name starts
with the name of the process that wrote it.
"""

import contextlib
import errno
import fcntl
import logging
import os
import threading
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from io import FileIO
from pathlib import Path
from uuid import uuid4

from django.conf import settings

from billing import processes
from billing.reservations import Settlement, from_line, to_line

logger = logging.getLogger(__name__)

SUFFIX = ".ndjson"
# Appended to the name of a file with lines that this database cannot settle.
REJECTED_SUFFIX = ".unknown"

_lock = threading.Lock()
# Files of other databases that were logged: each replay reads them again.
_logged: set[Path] = set()
# The file this process writes to. None until there is a settlement to write.
_own_file: FileIO | None = None
# Settlements that the disk did not accept either. Each replay tries them first. They are lost when
# this process exits.
_unwritten: "deque[Settlement]" = deque()


class LineStatus(StrEnum):
    """The result of replaying a line. The values appear in the log."""

    SETTLED = "settled"
    ALREADY_SETTLED = "settled before"
    OTHER_DATABASE = "of another database"
    REJECTED = "rejected by the database"


@dataclass(slots=True)
class Replayed:
    """The result of a replay: how many lines have each status, the ids of other databases, and the
    files that rejected lines were moved to."""

    statuses: Counter[LineStatus] = field(default_factory=Counter)
    databases: set[str] = field(default_factory=set)
    rejected_files: list[Path] = field(default_factory=list)

    def count(self, status: LineStatus, settlement: Settlement) -> None:
        self.statuses[status] += 1
        if status is LineStatus.OTHER_DATABASE:
            self.databases.add(str(settlement.reservation.database))


Settle = Callable[[Settlement], LineStatus]


# --- Write --------------------------------------------------------------------------------------


def write(settlement: Settlement) -> None:
    """Write a settlement to the disk; if that fails, keep it in memory and raise OSError."""
    try:
        with _lock:
            _append(to_line(settlement).encode("ascii"))
    except OSError:
        _unwritten.append(settlement)
        raise


def _append(line: bytes) -> None:
    global _own_file
    _own_file = _own_file or _new_file()
    # A full disk may have left half a line. The newline ends it.
    data = b"\n" + line if _own_file.tell() else line
    if _own_file.write(data) != len(data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    os.fsync(_own_file.fileno())


def _new_file(name: str | None = None) -> FileIO:
    """Create a file, by default with the name of this process, and lock it."""
    _directory().mkdir(parents=True, exist_ok=True)
    name = name or processes.file_name(processes.identity())
    path = _directory() / f"{name}.{uuid4().hex}.new"
    file = path.open("xb", buffering=0)
    _lock_file(file)
    # The suffix is set once the file is locked. Another process would remove an empty file.
    path.rename(path.with_suffix(SUFFIX))
    _sync_directory()
    return file


def _sync_directory() -> None:
    """Write the file names to the disk."""
    directory = os.open(_directory(), os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


# --- Replay -------------------------------------------------------------------------------------


def replay(settle: Settle) -> Replayed:
    """Settle the lines of this process's file and of the files of processes that have exited.

    An exception from `settle` stops the replay; the next replay reads the file again. Lines of
    other databases stay in the file. Rejected lines are moved to another file.
    """
    result = Replayed()
    _replay_memory(settle, result)
    close_own_file()
    for path in sorted(_directory().glob("*" + SUFFIX)):
        _replay_file(path, settle, result)
    return result


def _replay_memory(settle: Settle, result: Replayed) -> None:
    while _unwritten:
        # Removed after it is settled, because `settle` may raise.
        status = settle(_unwritten[0])
        settlement = _unwritten.popleft()
        result.count(status, settlement)
        if status in (LineStatus.OTHER_DATABASE, LineStatus.REJECTED):
            logger.error("A settlement is %s, and only this log has it: %s", status, settlement)


def workers_with_files() -> set[str]:
    """Return the workers, as `processes.file_name`, whose files are not replayed yet."""
    return {path.name.partition(".")[0] for path in _directory().glob("*" + SUFFIX)}


def close_own_file() -> None:
    """Close this process's file, so that it can be replayed. The next settlement creates one."""
    global _own_file
    with _lock:
        if _own_file is not None:
            _own_file.close()
        _own_file = None


def _replay_file(path: Path, settle: Settle, result: Replayed) -> None:
    """Settle a file's lines and remove it, unless another process has locked it."""
    with contextlib.ExitStack() as stack:
        try:
            file = stack.enter_context(path.open("rb", buffering=0))
        except FileNotFoundError:
            return  # Another process has replayed it.
        except OSError as error:
            logger.error("The journal %s cannot be read: %s", path.name, error)
            return
        if not _lock_file(file):
            return
        lines = list(filter(str.strip, file.read().decode("ascii", "replace").split("\n")))
        statuses = [_replay_line(line, settle, result) for line in lines]
        by_status = list(zip(lines, statuses, strict=True))
        rejected = [line for line, status in by_status if status is LineStatus.REJECTED]
        remaining = [line for line, status in by_status if status is LineStatus.OTHER_DATABASE]
        _move_rejected(path, rejected, result)
        if not remaining or len(remaining) < len(lines):
            _replace(path, remaining)
        if remaining and path not in _logged:
            _logged.add(path)
            logger.warning("The journal %s is of another database; it is left alone.", path.name)


def _replay_line(line: str, settle: Settle, result: Replayed) -> LineStatus | None:
    """Settle a line; return its status, or None if it is incomplete."""
    try:
        settlement = from_line(line)
    except (ValueError, KeyError, TypeError, AttributeError):
        # Half a line: the disk was full or the power failed, so its client received no cost. Or a
        # line of a later version. It can be logged: it contains numbers and names only.
        logger.error("A line of the journal cannot be read: %r", line[:1000])
        status = LineStatus.REJECTED if line.endswith("}") else None
        result.statuses.update([status] if status else [])
        return status
    status = settle(settlement)
    result.count(status, settlement)
    return status


def _move_rejected(path: Path, lines: list[str], result: Replayed) -> None:
    """Write lines to a file that is not replayed. Its name is the same if this is repeated after a
    crash."""
    if not lines:
        return
    rejected = path.with_name(path.name + REJECTED_SUFFIX)
    with rejected.open("wb", buffering=0) as file:
        _write_lines(file, lines)
    _sync_directory()
    result.rejected_files.append(rejected)
    logger.error("%d lines of the journal were moved to %s.", len(lines), rejected.name)


def _replace(path: Path, lines: list[str]) -> None:
    """Write the remaining lines, if any, to a new file and remove the old one."""
    if lines:
        with _new_file(path.name.partition(".")[0]) as file:
            _write_lines(file, lines)
    path.unlink(missing_ok=True)


def _write_lines(file: FileIO, lines: list[str]) -> None:
    file.write("".join(f"{line}\n" for line in lines).encode("ascii", "replace"))
    os.fsync(file.fileno())


def _lock_file(file: FileIO) -> bool:
    """Lock a file until it is closed; return False if another process has locked it."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _directory() -> Path:
    return Path(settings.JOURNAL_DIR)
