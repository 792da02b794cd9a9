"""The gateway with points at which it may kill itself with SIGKILL, at a given chance.

FAULTS: names of points, separated by commas. FAULT_CHANCE: the chance of each pass. FAULT_LOG: a
file to which each death first writes its point. FAULT_SEED: repeats the chances, as far as threads
allow.

FAILS: `settle` makes FAIL_CHANCE of the attempts to settle fail, as if the database were away at
that moment. Attempts of the background thread do not fail.

The product has no hook for this: its functions are wrapped here.
"""

import os
import random
import signal
import threading
from collections.abc import Callable
from typing import Any

from config.wsgi import application

__all__ = ["application"]

POINTS = (
    "after_hold",  # the hold is committed, the model server not asked yet
    "before_settle",  # the model server's last line is read, nothing of it is written
    "in_settle",  # the settling transaction is half done
    "after_settle",  # committed, and the client has not seen the last line
    "in_sweeper",  # the sweeper's transaction is half done
    "in_replay",  # a line of the journal is settled, the file still there
)

_armed = set(filter(None, os.environ.get("FAULTS", "").split(",")))
_chance = float(os.environ.get("FAULT_CHANCE", "0"))
_dice = random.Random(f"{os.environ.get('FAULT_SEED', '')}-{os.getpid()}")


def die_perhaps(point: str) -> None:
    if point in _armed and _dice.random() < _chance:
        log = os.open(os.environ["FAULT_LOG"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.write(log, f"{point}\n".encode())
        os.kill(os.getpid(), signal.SIGKILL)


def _in_background() -> bool:
    return threading.current_thread().name == "leases"


def _wrap(owner: Any, name: str, before: str = "", after: str = "", background: str = "") -> None:
    honest: Callable[..., Any] = getattr(owner, name)

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        if not _in_background():
            die_perhaps(before)
        found = honest(*args, **kwargs)
        die_perhaps(background if _in_background() else after)
        return found

    setattr(owner, name, wrapped)


def _arm() -> None:
    from billing import leases, ledger

    _wrap(ledger, "hold", after="after_hold")
    _wrap(ledger, "_roll_up", after="in_settle", background="in_sweeper")
    _wrap(ledger, "settle", before="before_settle", after="after_settle")
    _wrap(leases, "settle_from_journal", background="in_replay")


def _let_settling_fail(chance: float) -> None:
    from django.db import OperationalError

    from billing import ledger

    honest = ledger.settle

    def settle(*args: Any, **kwargs: Any) -> Any:
        if not _in_background() and _dice.random() < chance:
            raise OperationalError("away for a moment")
        return honest(*args, **kwargs)

    # The meter calls it there.
    setattr(ledger, "settle", settle)  # noqa: B010  # For mypy it is another function.


if _armed:
    _arm()
if os.environ.get("FAILS") == "settle":
    _let_settling_fail(float(os.environ["FAIL_CHANCE"]))
