"""Which process serves a request, and whether it is still there.

A hold names its worker, so that on the same machine a dead one is known at once instead of when
its lease runs out. The start time tells a process from a later one with the same number.
"""

import os
import socket
from functools import cache
from pathlib import Path

# States of a process that has ended, and of which only its parent has not taken note.
GONE = (b"Z", b"X")


def identity() -> str:
    """Return this process's name: host, process number, start time."""
    return f"{socket.gethostname()}/{local_identity()}"


def local_identity() -> str:
    """Return this process's name among those of this machine."""
    return f"{os.getpid()}-{_own_start(os.getpid())}"


def is_known_dead(worker: str) -> bool:
    """Tell whether a worker of this machine has ended; False where that cannot be known."""
    host, _slash, local = worker.rpartition("/")
    return host == socket.gethostname() and is_known_dead_here(local)


def may_still_run(worker: str) -> bool:
    """Tell whether a worker of this machine runs, or cannot be looked at just now."""
    host, _slash, local = worker.rpartition("/")
    number, _dash, started = local.partition("-")
    if host != socket.gethostname() or not started or not number.isdigit():
        return False
    return _started(int(number)) in (started, None)


def is_known_dead_here(local: str) -> bool:
    """Tell whether a process of this machine has ended, by its local name."""
    number, _dash, started = local.partition("-")
    if not started or not number.isdigit():
        return False
    return _started(int(number)) not in (started, None)


@cache
def _own_start(process: int) -> str:
    """Return our own start time, read once: when no file can be opened we are still who we are."""
    return _started(process) or ""


def _started(process: int) -> str | None:
    """Return a process's start time in clock ticks since boot; empty if it is gone, None if that
    cannot be known: a process without a file left to open must not think the others dead."""
    try:
        stat = Path(f"/proc/{process}/stat").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return ""
    except OSError:
        return None
    # The second field, the command, may hold anything; state is field 3, the start time field 22.
    fields = stat.rpartition(b")")[2].split()
    return "" if fields[0] in GONE else fields[19].decode("ascii")
