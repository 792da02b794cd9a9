"""Whether a process runs is known only within one boot and one PID namespace."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from billing import processes

pytestmark = pytest.mark.once  # It needs no database.

ROOT = Path(__file__).resolve().parents[2]
PRINT_NAME = "import sys; from billing import processes; print(processes.identity(), flush=True)"
PRINT_AND_WAIT = f"{PRINT_NAME}; sys.stdin.read()"
OWN_NAMESPACE = ["unshare", "--pid", "--mount-proc", "--fork", "--kill-child"]
NOBODY = 65534

needs_root = pytest.mark.skipif(
    os.geteuid() != 0 or not shutil.which("unshare"), reason="namespaces need root and unshare"
)


def started(*before: str) -> "subprocess.Popen[str]":
    """Start another process that prints its name and waits for the end of its input."""
    command = [*before, sys.executable, "-c", PRINT_AND_WAIT]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=ROOT, stdin=pipe, stdout=pipe, text=True)


def name_of(process: "subprocess.Popen[str]") -> str:
    assert process.stdout
    return process.stdout.readline().strip()


def test_a_process_runs_until_it_exits() -> None:
    with started() as process:
        name = name_of(process)
        assert not processes.has_exited(name) and processes.may_be_running(name)
        process.kill()

    assert processes.has_exited(name) and not processes.may_be_running(name)


@needs_root
def test_a_process_of_another_pid_namespace_is_neither_running_nor_exited() -> None:
    """Two containers with one host name each have a process 1 and cannot see the other's."""
    with started(*OWN_NAMESPACE) as process:
        name = name_of(process)
        assert name.rpartition("/")[2].startswith("1-"), name
        assert processes.is_of_this_boot(name)
        assert not processes.has_exited(name) and not processes.may_be_running(name)
        process.kill()

    assert not processes.has_exited(name)


@needs_root
def test_a_process_hidden_from_another_user_has_not_exited() -> None:
    """Hosts may mount /proc with hidepid=2. A missing file then proves nothing."""
    program = (
        "import os, sys\n"
        "from billing import processes\n"
        "processes.identity()\n"
        f"os.setgroups([]); os.setgid({NOBODY}); os.setuid({NOBODY})\n"
        "assert not os.path.exists(f'/proc/{sys.argv[2]}')\n"
        "print(processes.has_exited(sys.argv[1]), processes.may_be_running(sys.argv[1]))"
    )
    hide = 'mount -t proc -o hidepid=2 proc /proc && exec "$@"'
    with started() as process:
        name = name_of(process)
        command = ["unshare", "--mount", "sh", "-c", hide, "sh", sys.executable, "-c", program]
        finished = subprocess.run(
            [*command, name, str(process.pid)], cwd=ROOT, capture_output=True, text=True
        )
        process.kill()

    assert finished.stdout.strip() == "False True", finished.stderr


def test_a_reused_process_number_means_the_process_has_exited() -> None:
    prefix, _slash, local = processes.identity().rpartition("/")
    number, _dash, _started = local.partition("-")

    assert processes.has_exited(f"{prefix}/{number}-1")


def test_a_process_of_an_earlier_boot_is_treated_as_one_of_another_machine() -> None:
    host, boot, namespace, local = processes.identity().split("/")
    earlier = f"{host}/{boot[::-1]}/{namespace}/{local}"

    assert not processes.is_of_this_boot(earlier)
    assert not processes.has_exited(earlier) and not processes.may_be_running(earlier)


def test_nothing_is_known_if_proc_belongs_to_another_namespace(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its files describe other processes that have the same numbers."""
    processes._namespace.cache_clear()
    monkeypatch.setattr(os, "readlink", lambda _path: "1")
    try:
        name = processes.identity()
        assert not processes.has_exited(name) and not processes.may_be_running(name)
    finally:
        processes._namespace.cache_clear()
