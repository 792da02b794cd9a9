"""Files that the gateway writes are readable by its user only."""

from pathlib import Path

from tests.harness.gateway import RunningGateway


def test_files_of_workers_are_private(gateway: RunningGateway) -> None:
    pids = [gateway.server.pid, *gateway.server.worker_pids()]

    assert len(pids) > 1
    assert all("Umask:\t0077" in Path(f"/proc/{pid}/status").read_text() for pid in pids)
