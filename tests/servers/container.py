"""A gateway in its own namespaces, as in a container or on another host; paused processes."""

import contextlib
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from tests.servers.gunicorn import Gunicorn, _parent, _pids

MISSING = "" if os.geteuid() == 0 and shutil.which("unshare") else "needs root and unshare"
# Nothing is shared with this process's namespaces, mounts neither.
UNSHARE = ["unshare", "--pid", "--mount-proc", "--uts", "--fork", "--kill-child"]
INSIDE = """
set -e
[ -z "$HOST_NAME" ] || hostname "$HOST_NAME"
[ -z "$BOOT_ID" ] || mount --bind "$BOOT_ID" /proc/sys/kernel/random/boot_id
exec "$@"
"""


class Container(Gunicorn):
    """A gateway in a PID namespace of its own; its master is process 1.

    `host_name`: empty for the one of this machine. `boot_id`: a file with the boot id of another
    machine, which it then takes itself for.
    """

    def __init__(
        self,
        env: Mapping[str, str],
        *,
        host_name: str = "",
        boot_id: Path | None = None,
        args: Sequence[str] = (),
    ) -> None:
        told = {"HOST_NAME": host_name, "BOOT_ID": str(boot_id or "")}
        super().__init__({**env, **told}, args=args)
        self._command = [*UNSHARE, "sh", "-c", INSIDE, "sh", *self._command]

    def stop(self, timeout: float = 10.0) -> int:
        """Signal the master itself: `unshare` ignores SIGTERM."""
        for master in self.worker_pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(master, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout)
        return self.kill()

    def pids(self) -> list[int]:
        """Every process in it, by its number outside; the master first."""
        found = self.worker_pids()
        for pid in found:
            found += [child for child in _pids() if _parent(child) == pid]
        return found


@contextlib.contextmanager
def paused(pids: list[int]) -> Iterator[None]:
    """Pause processes, like a suspended machine, and resume them."""
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)
