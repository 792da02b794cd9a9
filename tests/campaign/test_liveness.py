"""A wall clock that steps under running responses ends none of them."""

import shutil
import subprocess
import time
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path

import pytest

from tests.campaign.load import Streams, whole_with_usage
from tests.campaign.site import DATABASES, Producer, Seen, Site, site

pytestmark = pytest.mark.once  # It brings its own databases, so one run is enough.

LEASE = 3  # Seconds, as a site has it.
HOURS = 3600
SOURCE = Path(__file__).resolve().parents[1] / "servers" / "wrong_clock.c"
COMPILER = shutil.which("cc")

needs_compiler = pytest.mark.skipif(not COMPILER, reason="no C compiler to make a wrong clock")


@pytest.fixture
def producer() -> Producer:
    return Producer()


@pytest.fixture(params=DATABASES)
def place(request: pytest.FixtureRequest, producer: Producer) -> Iterator[Site]:
    with site(request.param) as made:
        made.ollama.answer("/api/generate", producer)
        yield made


def all_whole(place: Site, producer: Producer, seen: list[Seen]) -> None:
    whole_with_usage(seen)
    place.books_balance()
    rows = place.rows()
    for one in seen:
        row, usage = rows.pop(one.request_id), one.usage
        assert usage and row.outcome == "complete"
        assert row.completion_tokens == one.pieces == producer.produced[one.number].written
        assert row.cost == Decimal(usage["cost"])
    assert not rows


# --- Clocks ---------------------------------------------------------------------------------------


class Clock:
    """A wall clock that can be wrong, for whatever runs with its environment."""

    def __init__(self, folder: Path) -> None:
        self._file, library = folder / "shift", folder / "wrong_clock.so"
        self.set(0)
        command = [str(COMPILER), "-shared", "-fPIC", "-o", str(library), str(SOURCE), "-ldl"]
        subprocess.run(command, check=True)
        self.env = {"LD_PRELOAD": str(library), "CLOCK_SHIFT": str(self._file)}

    def set(self, seconds: int) -> None:
        ready = self._file.with_suffix(".new")
        ready.write_text(str(seconds))
        ready.rename(self._file)


@pytest.fixture
def clock(tmp_path: Path) -> Clock:
    return Clock(tmp_path)


@needs_compiler
@pytest.mark.parametrize("shift", [-2 * HOURS, 2 * HOURS])
def test_a_clock_that_steps_under_streams_ends_none(
    place: Site, producer: Producer, clock: Clock, shift: int
) -> None:
    """On SQLite the database's clock steps, too."""
    place.more = {**place.more, **clock.env}
    with place.gateway() as server:
        time.sleep(LEASE / 2 + 1)
        streams = Streams(place, server.url, 8, pieces=150)
        time.sleep(1)
        clock.set(shift)
        seen = streams.wait()
        log = server.log()

    assert "was orphaned" not in log
    all_whole(place, producer, seen)
