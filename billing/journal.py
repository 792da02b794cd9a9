"""What could not be settled while the database was away, kept on this machine's disk.

One append-only file for each process, a line for each answer that ended, on the disk before the
client sees the end. The keeper replays it when the database is back, and takes over the files of
processes that died. Replaying twice is harmless: the ledger's gate lets each hold end once.
"""

import json
import logging
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from uuid import UUID, uuid4

from django.conf import settings

from billing import workers
from gateway.metering import CountSource, Outcome, Usage

logger = logging.getLogger(__name__)

_lock = threading.Lock()
# What the disk did not take either. It lasts as long as this process, and is tried first.
_unwritten: "deque[Ending]" = deque()


@dataclass(frozen=True, slots=True)
class Ending:
    """How an answer ended, as it is to be settled."""

    request_id: UUID
    usage: Usage
    outcome: Outcome
    billed: bool


def write(ending: Ending) -> None:
    """Put an ending on the disk, durably; where that cannot be keep it here and raise OSError."""
    line = json.dumps(asdict(ending), default=str) + "\n"
    try:
        with _lock:
            _append(line)
    except OSError:
        _unwritten.append(ending)
        raise


def _append(line: str) -> None:
    _folder().mkdir(parents=True, exist_ok=True)
    with _own_file().open("a", encoding="ascii") as file:
        # A full disk may have left half a line there; the newline ends it.
        file.write("\n" + line if file.tell() else line)
        file.flush()
        os.fsync(file.fileno())


def replay(settle: Callable[[Ending], None]) -> int:
    """Settle what stands in our journal and in those of the dead; return how many lines.

    What `settle` raises stops the replay; the file stays, and the next replay reads it again.
    """
    done = 0
    while _unwritten:
        settle(_unwritten[0])
        _unwritten.popleft()
        done += 1
    for path in list(_claimed()):
        for ending in _endings(path):
            settle(ending)
            done += 1
        path.unlink(missing_ok=True)
    return done


def _folder() -> Path:
    return Path(settings.JOURNAL_DIR)


def _own_file() -> Path:
    return _folder() / f"{workers.local_identity()}.ndjson"


def _claimed() -> Iterator[Path]:
    """Yield files that are ours alone to replay: nobody writes to them, nobody else reads them."""
    for path in sorted(_folder().glob("*.ndjson")):
        owner = path.name.partition(".")[0]
        if owner == workers.local_identity() or workers.is_known_dead_here(owner):
            # A name that is new each time: an earlier file may wait yet for the database.
            claimed = path.with_suffix(f".{workers.local_identity()}.{uuid4().hex}.replay")
            try:
                with _lock:
                    path.rename(claimed)
            except OSError:
                continue  # Another process was quicker.
    for path in sorted(_folder().glob("*.replay")):
        reader = path.name.split(".")[1]
        if reader == workers.local_identity() or workers.is_known_dead_here(reader):
            yield path


def _endings(path: Path) -> Iterator[Ending]:
    try:
        lines = path.read_text(encoding="ascii").split("\n")
    except FileNotFoundError:
        return  # Two took over a dead reader's file, and the other is through with it.
    for line in filter(None, lines):
        try:
            yield _read(json.loads(line))
        except (ValueError, KeyError, TypeError):
            # Half a line: the power went while it was written, so its client saw no end.
            logger.error("A line of the journal cannot be read: %s", path.name)


def _read(found: dict[str, object]) -> Ending:
    usage = found["usage"]
    if not isinstance(usage, dict):
        raise TypeError("usage")
    counted = Usage(**{**usage, "source": CountSource(usage["source"])})
    return Ending(
        request_id=UUID(str(found["request_id"])),
        usage=counted,
        outcome=Outcome(str(found["outcome"])),
        billed=found["billed"] is True,
    )
