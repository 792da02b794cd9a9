"""What runs beside the requests of a process, started once it will not fork any more."""

import logging
import os
import threading

from django.conf import settings

logger = logging.getLogger(__name__)

_lock = threading.Lock()
_started_in: int | None = None


def start() -> bool:
    """Renew leases, settle what crashed, end answers of revoked keys; tell whether it began now."""
    global _started_in
    with _lock:
        if _started_in == os.getpid():
            return False
        _started_in = os.getpid()
    from billing.leases import lease_renewer
    from gateway.upstream import revocation

    lease_renewer.start()
    revocation.start()
    return True


def start_with_first_request() -> None:
    """Start it where no hook of config/gunicorn.py did."""
    if _started_in != os.getpid() and settings.KEEP_LEASES and start():
        logger.warning(
            "Served without -c config/gunicorn.py: settings are not checked, slow clients are not "
            "bounded, and a restart cuts running answers."
        )
