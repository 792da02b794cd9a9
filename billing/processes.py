"""Which process serves a request, and whether it still runs.

A hold names its process, so that another process of the same machine knows at once that it ended,
and does not wait for the lease to run out.

A process number says something only inside its PID namespace, and only until the machine restarts:
two containers may share a host name and use the same numbers. So the name of a process contains the
boot id of its machine, its PID namespace, its number and its start time, which tells it from a
later process with the same number. The host name is there for people.
"""

import os
import socket
from functools import cache
from pathlib import Path

# States of a process that has ended, and of which only its parent has not taken note.
GONE = (b"Z", b"X")
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
NAMESPACE = Path("/proc/self/ns/pid")


def identity() -> str:
    """Return this process's name: host, boot id, PID namespace, process number and start time."""
    return "/".join([socket.gethostname(), _boot(), _namespace(), local_identity()])


def local_identity() -> str:
    """Return this process's name among those of its PID namespace."""
    return f"{os.getpid()}-{_own_start(os.getpid())}"


def file_name(worker: str) -> str:
    """Return a process's name without its host, as a part of a file's name."""
    return "_".join(worker.rsplit("/", 3)[1:])


def is_of_this_boot(worker: str) -> bool:
    """Tell whether a process started on this machine since it was switched on."""
    _host, boot, _namespace, _local = _parts(worker)
    return bool(boot) and boot == _boot()


def has_exited(worker: str) -> bool:
    """Tell whether a process has ended; False where that cannot be known."""
    return _runs(worker) is False


def may_be_running(worker: str) -> bool:
    """Tell whether a process of this PID namespace runs, or cannot be looked at just now."""
    return _is_of_this_namespace(worker) and _runs(worker) is not False


def _runs(worker: str) -> bool | None:
    """Tell whether a process runs; None where that cannot be known."""
    number, _dash, started = _parts(worker)[3].partition("-")
    if not _is_of_this_namespace(worker) or not number.isdigit():
        return None
    try:
        os.kill(int(number), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # It is another user's, so it is there.
    except OverflowError:
        return None
    found = _started(int(number))
    # What /proc does not show may be hidden (hidepid): then `kill` alone decides.
    return None if found is None or not started else found == started


def _parts(worker: str) -> list[str]:
    """Return host, boot id, PID namespace and local name."""
    parts = worker.rsplit("/", 3)
    return parts if len(parts) == 4 else ["", "", "", ""]


def _is_of_this_namespace(worker: str) -> bool:
    _host, boot, namespace, _local = _parts(worker)
    return is_of_this_boot(worker) and bool(namespace) and (boot, namespace) == _place()


def _place() -> tuple[str, str]:
    return _boot(), _namespace()


@cache
def _boot() -> str:
    try:
        return BOOT_ID.read_text().strip()
    except OSError:
        return ""


@cache
def _namespace() -> str:
    """Return the number of this process's PID namespace; empty where /proc is another one's."""
    try:
        shows_us = os.readlink("/proc/self") == str(os.getpid())
        return str(NAMESPACE.stat().st_ino) if shows_us else ""
    except OSError:
        return ""


@cache
def _own_start(process: int) -> str:
    """Return our own start time, read once: when no file can be opened we are still who we are."""
    return _started(process) or ""


def _started(process: int) -> str | None:
    """Return a process's start time in clock ticks since boot; empty if it has ended, None if that
    cannot be read: it is hidden from us, or we have no file left to open."""
    try:
        stat = Path(f"/proc/{process}/stat").read_bytes()
    except OSError:
        return None
    # The second field, the command, may hold anything; state is field 3, the start time field 22.
    fields = stat.rpartition(b")")[2].split()
    return "" if fields[0] in GONE else fields[19].decode("ascii")
