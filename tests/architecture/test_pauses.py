"""A worker that hangs is killed; workers of a host that was paused are not."""

from types import SimpleNamespace

import pytest

from config import pauses

pytestmark = pytest.mark.once  # It needs no database.

TIMEOUT = 30


def killed(monkeypatch: pytest.MonkeyPatch, moments: list[float]) -> list[float]:
    """Let a master look at its workers at these moments; return those at which it would kill."""
    clock, found = [0.0], []
    monkeypatch.setattr("time.monotonic", lambda: clock[-1])
    master = SimpleNamespace(timeout=TIMEOUT, murder_workers=lambda: found.append(clock[-1]))
    pauses.spare_workers_after(master)
    for moment in moments:
        clock.append(moment)
        master.murder_workers()
    return found


def test_a_master_that_runs_looks_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    assert killed(monkeypatch, [1, 2, 3.5, 9]) == [1, 2, 3.5, 9]


def test_after_a_pause_workers_have_as_long_as_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    after = [62.0 + second for second in range(TIMEOUT + 2)]

    assert killed(monkeypatch, [1, 2, *after]) == [1, 2, 92.0, 93.0]
