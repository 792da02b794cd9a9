"""Keep gunicorn's master from killing its workers after the host was paused.

The master kills a worker that has not sent a heartbeat for `timeout`. After a pause of the host (a
suspended machine) that is true of every worker, and each would be killed with all its responses.
The master checks about once a second. If its own last check is long ago, it was paused too, and
gives its workers a new `timeout`.
"""

import time
from typing import Any


def spare_workers_after(arbiter: Any) -> None:
    """Wrap `murder_workers`, which kills workers. It and `timeout` are names of gunicorn 27."""
    murder_workers = arbiter.murder_workers
    checked_at = time.monotonic()
    spared_until = checked_at

    def check() -> None:
        nonlocal checked_at, spared_until
        now = time.monotonic()
        if now - checked_at > arbiter.timeout / 2:
            spared_until = now + arbiter.timeout
        checked_at = now
        if now >= spared_until:
            murder_workers()

    arbiter.murder_workers = check
