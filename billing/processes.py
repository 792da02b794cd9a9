"""The names of processes that serve requests, and whether such a process still runs.

A hold names its process. Another process of the same machine can see that it has exited, and does
not wait for the lease to expire.

A process number is unique only inside its PID namespace and until the machine restarts: two
containers may share a host name and use the same numbers. So the name of a process contains the
boot id of its machine, its PID namespace, its number and its start time, which distinguishes it
from a later process with the same number. The host name is for people.
"""

import os
import socket
from functools import cache
from pathlib import Path

# States of a process that has exited, but whose parent has not called wait().
EXITED_STATES = (b"Z", b"X")
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
NAMESPACE = Path("/proc/self/ns/pid")


def identity() -> str:
    """Return this process's name: host, boot id, PID namespace, process number and start time."""
    return "/".join([socket.gethostname(), _boot(), _namespace(), local_identity()])


def local_identity() -> str:
    """Return the part of this process's name that is unique in its PID namespace."""
    return f"{os.getpid()}-{_own_start(os.getpid())}"


def file_name(worker: str) -> str:
    """Return a process's name without its host, for use in a file name."""
    return "_".join(worker.rsplit("/", 3)[1:])


def is_of_this_boot(worker: str) -> bool:
    """Tell whether a process was started on this machine since the machine started."""
    _host, boot, _namespace, _local = _parts(worker)
    return bool(boot) and boot == _boot()


def has_exited(worker: str) -> bool:
    """Tell whether a process has exited; False if that cannot be known."""
    return _runs(worker) is False


def may_be_running(worker: str) -> bool:
    """Tell whether a process is of this PID namespace, and runs or cannot be inspected."""
    return _is_of_this_namespace(worker) and _runs(worker) is not False


def _runs(worker: str) -> bool | None:
    """Tell whether a process runs; None if that cannot be known."""
    number, _dash, started = _parts(worker)[3].partition("-")
    if not _is_of_this_namespace(worker) or not number.isdigit():
        return None
    try:
        os.kill(int(number), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # The process exists. It belongs to another user.
    except OverflowError:
        return None
    start_time = _started(int(number))
    # With hidepid, /proc hides processes that `kill` can still find.
    return None if start_time is None or not started else start_time == started


def _parts(worker: str) -> list[str]:
    """Return host, boot id, PID namespace and local name."""
    parts = worker.rsplit("/", 3)
    return parts if len(parts) == 4 else ["", "", "", ""]


def _is_of_this_namespace(worker: str) -> bool:
    _host, boot, namespace, _local = _parts(worker)
    same_namespace = (boot, namespace) == (_boot(), _namespace())
    return is_of_this_boot(worker) and bool(namespace) and same_namespace


@cache
def _boot() -> str:
    try:
        return BOOT_ID.read_text().strip()
    except OSError:
        return ""


@cache
def _namespace() -> str:
    """Return the number of this process's PID namespace.

    It is empty if /proc belongs to another namespace.
    """
    try:
        is_ours = os.readlink("/proc/self") == str(os.getpid())
        return str(NAMESPACE.stat().st_ino) if is_ours else ""
    except OSError:
        return ""


@cache
def _own_start(process: int) -> str:
    """Return our own start time. It is read once, in case this process runs out of open files."""
    return _started(process) or ""


def _started(process: int) -> str | None:
    """Return a process's start time in clock ticks since boot, or empty if it has exited.

    None if it cannot be read: /proc hides the process, or this process can open no more files.
    """
    try:
        stat = Path(f"/proc/{process}/stat").read_bytes()
    except OSError:
        return None
    # Field 2, the command, may contain spaces and parentheses. Field 3 is the state, 22 the start.
    fields = stat.rpartition(b")")[2].split()
    return "" if fields[0] in EXITED_STATES else fields[19].decode("ascii")
