"""What the gateway writes to the disk is its user's alone."""

from pathlib import Path

from tests.harness.gateway import RunningGateway


def test_workers_write_files_that_nobody_else_may_read(gateway: RunningGateway) -> None:
    pids = [gateway.server.pid, *gateway.server.worker_pids()]

    assert len(pids) > 1
    assert all("Umask:\t0077" in Path(f"/proc/{pid}/status").read_text() for pid in pids)
