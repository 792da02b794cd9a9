"""What could not be settled while the database was away, kept on this machine's disk.

An append-only file for each process, a line for each answer that ended, on the disk before the
client sees the end. The lease thread replays it when the database is back, and takes over the files
of processes that died. Replaying twice is harmless: the ledger's gate lets each hold end once.

Each line names its database, since gateways of several may share a folder, and carries its whole
reservation, since an older backup may have been restored meanwhile.

Whoever writes or replays a file holds its lock, which the kernel takes back when he dies: so no
file is read that still grows, none is read by two, and none is forgotten. A file's name begins with
the name of the process that wrote it, whoever replays it.
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
# Ends the name of a file with lines that this database cannot settle.
ASIDE = ".unknown"

_lock = threading.Lock()
# Files of other databases of which the log tells already: each replay meets them again.
_reported: set[Path] = set()
# What this process writes to; none until there is something to write.
_own: FileIO | None = None
# What the disk did not take either. It lasts as long as this process, and is tried first.
_unwritten: "deque[Settlement]" = deque()


class Fate(StrEnum):
    """What became of a line that was replayed."""

    SETTLED = "settled"
    ENDED = "its hold had ended before"
    FOREIGN = "of another database"
    REFUSED = "cannot be settled here"


@dataclass(slots=True)
class Replayed:
    """What a replay did: how many lines of each fate, whose the foreign ones are, and the files
    with those that were moved aside."""

    fates: Counter[Fate] = field(default_factory=Counter)
    databases: set[str] = field(default_factory=set)
    aside: list[Path] = field(default_factory=list)


Settle = Callable[[Settlement], Fate]


# --- Write --------------------------------------------------------------------------------------


def write(settlement: Settlement) -> None:
    """Put a settlement on the disk, durably; where that cannot be keep it here, raise OSError."""
    try:
        with _lock:
            _append(to_line(settlement).encode("ascii"))
    except OSError:
        _unwritten.append(settlement)
        raise


def _append(line: bytes) -> None:
    global _own
    _own = _own or _new_file()
    # A full disk may have left half a line there; the newline ends it.
    data = b"\n" + line if _own.tell() else line
    if _own.write(data) != len(data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    os.fsync(_own.fileno())


def _new_file(name: str | None = None) -> FileIO:
    """Begin a file under a name that is given or our own, and take its lock."""
    _folder().mkdir(parents=True, exist_ok=True)
    name = name or processes.file_name(processes.identity())
    path = _folder() / f"{name}.{uuid4().hex}.new"
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


def replay(settle: Settle) -> Replayed:
    """Settle what stands in our journal and in those of the dead.

    What `settle` raises stops the replay; the file stays, and the next replay reads it again. Lines
    of other databases stay where they are. What this database cannot settle is moved aside.
    """
    done = Replayed()
    while _unwritten:
        fate = settle(_unwritten[0])
        _count(done, fate, _unwritten[0])
        settlement = _unwritten.popleft()
        if fate in (Fate.FOREIGN, Fate.REFUSED):
            logger.error("This ending is %s, and stands nowhere else: %s", fate, settlement)
    let_go()
    for path in sorted(_folder().glob("*" + SUFFIX)):
        _replay_file(path, settle, done)
    return done


def _count(done: Replayed, fate: Fate, settlement: Settlement) -> None:
    done.fates[fate] += 1
    if fate is Fate.FOREIGN:
        done.databases.add(str(settlement.reservation.database))


def owners() -> set[str]:
    """Return the processes, as `processes.file_name`, of which a journal waits to be replayed."""
    return {path.name.partition(".")[0] for path in _folder().glob("*" + SUFFIX)}


def let_go() -> None:
    """Write to our file no more, so that it can be replayed; the next ending begins another."""
    global _own
    with _lock:
        if _own is not None:
            _own.close()
        _own = None


def _replay_file(path: Path, settle: Settle, done: Replayed) -> None:
    """Settle a file's lines and remove it, unless another process holds it."""
    with contextlib.ExitStack() as stack:
        try:
            file = stack.enter_context(path.open("rb", buffering=0))
        except FileNotFoundError:
            return  # Another was quicker.
        except OSError as error:
            logger.error("The journal %s cannot be read: %s", path.name, error)
            return
        if not _is_locked(file):
            return
        foreign, refused, count = [], [], 0
        for line in filter(str.strip, file.read().decode("ascii", "replace").split("\n")):
            fate = _replay_line(line, settle, done)
            foreign += [line] if fate is Fate.FOREIGN else []
            refused += [line] if fate is Fate.REFUSED else []
            count += 1
        _set_aside(path, refused, done)
        if not foreign or len(foreign) < count:
            _keep(path, foreign)
        if foreign and path not in _reported:
            _reported.add(path)
            logger.warning("The journal %s is of another database; it is left alone.", path.name)


def _replay_line(line: str, settle: Settle, done: Replayed) -> Fate | None:
    """Settle a line; return what became of it, or None if it is none."""
    try:
        settlement = from_line(line)
    except (ValueError, KeyError, TypeError, AttributeError):
        # Half a line: the disk was full or the power went, so its client saw no cost. Or one of
        # a later version. It holds numbers and names only.
        logger.error("A line of the journal cannot be read: %r", line[:1000])
        fate = Fate.REFUSED if line.endswith("}") else None
        done.fates.update([fate] if fate else [])
        return fate
    fate = settle(settlement)
    _count(done, fate, settlement)
    return fate


def _set_aside(path: Path, lines: list[str], done: Replayed) -> None:
    """Write lines to a file that nobody replays. The same file each time, should we die here."""
    if not lines:
        return
    aside = path.with_name(path.name + ASIDE)
    with aside.open("wb", buffering=0) as file:
        file.write("".join(f"{line}\n" for line in lines).encode("ascii", "replace"))
        os.fsync(file.fileno())
    _sync_folder()
    done.aside.append(aside)
    logger.error("%d lines of the journal were moved to %s.", len(lines), aside.name)


def _keep(path: Path, lines: list[str]) -> None:
    """Put the lines that are left into a file of their own, if any, and remove the old one."""
    if lines:
        with _new_file(path.name.partition(".")[0]) as file:
            file.write("".join(f"{line}\n" for line in lines).encode("ascii", "replace"))
            os.fsync(file.fileno())
    path.unlink(missing_ok=True)


def _is_locked(file: FileIO) -> bool:
    """Take a file's lock for as long as it is open; tell whether nobody else has it."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _folder() -> Path:
    return Path(settings.JOURNAL_DIR)
