"""Let gunicorn's master tell a host that was paused from workers that hang.

The master kills a worker that has given no sign of life for `timeout`. Where the whole host stood
still (a suspended machine), that is true of every worker, and each would be killed with all its
answers the moment it could go on. The master looks about once a second: if it has not looked for
long, it stood still itself, and gives its workers as long as they have always.
"""

import time
from typing import Any


def spare_workers_after(arbiter: Any) -> None:
    """Wrap what kills silent workers. `murder_workers` and `timeout` are names of gunicorn 27."""
    kill_the_silent = arbiter.murder_workers
    looked_at = time.monotonic()
    spared_until = looked_at

    def look() -> None:
        nonlocal looked_at, spared_until
        now = time.monotonic()
        if now - looked_at > arbiter.timeout / 2:
            spared_until = now + arbiter.timeout
        looked_at = now
        if now >= spared_until:
            kill_the_silent()

    arbiter.murder_workers = look
