"""Which process serves a request, and whether it is still there.

A hold names its worker, so that on the same machine a dead one is known at once instead of when
its lease runs out. The start time tells a process from a later one with the same number.
"""

import os
import socket
from pathlib import Path


def identity() -> str:
    """Return this process's name: host, process number, start time."""
    return f"{socket.gethostname()}/{local_identity()}"


def local_identity() -> str:
    """Return this process's name among those of this machine."""
    return f"{os.getpid()}-{_started(os.getpid())}"


def is_known_dead(worker: str) -> bool:
    """Tell whether a worker of this machine has ended; False where that cannot be known."""
    host, _slash, local = worker.rpartition("/")
    return host == socket.gethostname() and is_known_dead_here(local)


def is_known_alive(worker: str) -> bool:
    """Tell whether a worker of this machine still runs; False where that cannot be known."""
    host, _slash, local = worker.rpartition("/")
    number, _dash, started = local.partition("-")
    if host != socket.gethostname() or not started or not number.isdigit():
        return False
    return _started(int(number)) == started


def is_known_dead_here(local: str) -> bool:
    """Tell whether a process of this machine has ended, by its local name."""
    number, _dash, started = local.partition("-")
    return bool(started) and number.isdigit() and _started(int(number)) != started


def _started(process: int) -> str:
    """Return a process's start time in clock ticks since boot; empty if it is gone or unknown."""
    try:
        stat = Path(f"/proc/{process}/stat").read_text()
    except OSError:
        return ""
    # The second field, the command, may hold blanks and brackets; the start time is field 22.
    return stat.rpartition(")")[2].split()[19]
