"""Cancel running responses whose keys are revoked, expired, or of a suspended account.

Authentication checks a key once, before the response, and a response may take an hour. So each
process queries periodically, while responses run, which of their keys are still usable. The
response of a key that is no longer usable ends with an error, and is billed like one whose client
left. While the database is away, no response is cancelled.
"""

from django.utils import timezone

from accounts import keys
from gateway.errors import KeyRevoked
from gateway.upstream.cancellation import disconnect_monitor

# Seconds between two checks, each one short query while responses run.
EVERY = 0.5


def tick() -> None:
    """Cancel the running responses of keys that are no longer usable."""
    running = [
        (cancellation.key_id, cancellation)
        for cancellation in disconnect_monitor.running()
        if cancellation.key_id is not None
    ]
    if not running:
        return
    usable = keys.usable({key_id for key_id, _cancellation in running}, timezone.now())
    for key_id, cancellation in running:
        if key_id not in usable:
            cancellation.cancel(KeyRevoked)
