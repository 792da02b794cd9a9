"""Load models into a model server's memory, for all requests that wait for them.

Ollama aborts a load when the client that caused it disconnects, and starts it again for the next
waiting request. A client that connects and disconnects repeatedly would prevent a load for ever.
Here a load belongs to the gateway: one call for each model, on a connection that no client closes.

Each worker process makes its own call. Ollama serves several calls with one load.
"""

import logging
import threading
import time
from collections.abc import Callable

from django.conf import settings

from gateway.errors import BadRequest, GatewayError, UpstreamStalled
from gateway.scheduling.inventory import LOOK_SECONDS, HostInventory, read
from gateway.scheduling.shared_call import SharedCall
from gateway.upstream.cancellation import Cancellation

logger = logging.getLogger(__name__)

# What a load call returns: nothing, or how the model server refused it.
Refusal = BadRequest | None


class Loads:
    """The loads of one model server."""

    def __init__(self, inventory: HostInventory) -> None:
        self._inventory = inventory
        self._client = inventory.client
        self._lock = threading.Lock()
        self._calls: dict[str, SharedCall[Refusal]] = {}

    def ensure(self, model: str, cancellation: Cancellation) -> None:
        """Wait until a model is in memory. One that is refused is left to the request itself, whose
        refusal says why.

        Raises why the Cancellation was broken off, or how the load failed.
        """
        if self._inventory.loaded(model):
            return
        cancellation.set_deadline(settings.UPSTREAM_FIRST_LINE_SECONDS, UpstreamStalled)
        if not self._inventory.find_loaded(model, cancellation):
            self._wait(model, cancellation)

    def load(self, model: str, cancellation: Cancellation) -> None:
        """Load a model; raise what `ensure` raises, and a refusal."""
        cancellation.set_deadline(settings.UPSTREAM_FIRST_LINE_SECONDS, UpstreamStalled)
        refusal = self._wait(model, cancellation)
        if refusal is not None:
            raise refusal.with_traceback(None)

    def unload(self, model: str, cancellation: Cancellation) -> None:
        """Have a model leave the memory when its running requests have ended."""
        if cancellation.reason:
            raise cancellation.reason()
        call = SharedCall(self._unloading(model), outlives_waiters=True)
        call.wait(call.start_and_join(), cancellation)

    def _wait(self, model: str, cancellation: Cancellation) -> Refusal:
        """Wait for the load under way, or for a new one."""
        if cancellation.reason:
            raise cancellation.reason()
        with self._lock:
            call = self._calls.get(model)
            event = call.join() if call is not None else None
            if call is None or event is None:
                call = self._calls[model] = SharedCall(self._loading(model), outlives_waiters=True)
                event = call.start_and_join()
        return call.wait(event, cancellation)

    def _loading(self, model: str) -> Callable[[Cancellation], Refusal]:
        def work(cancellation: Cancellation) -> Refusal:
            try:
                return self._load(model, cancellation)
            finally:
                with self._lock:
                    self._calls.pop(model, None)

        return work

    def _load(self, model: str, cancellation: Cancellation) -> Refusal:
        began = time.monotonic()
        # An empty embed loads any model: no capability is checked.
        body = {"model": model, "input": []}
        try:
            timeout = settings.UPSTREAM_FIRST_LINE_SECONDS
            self._client.fetch("embed", body, timeout, cancellation)
        except BadRequest as refusal:
            return refusal
        except GatewayError as error:
            logger.warning("The model %s could not be loaded: %s", model, error.message)
            raise
        logger.info("The model %s was loaded in %.1f s.", model, time.monotonic() - began)
        self._look_again(model, cancellation)
        return None

    def _look_again(self, model: str, cancellation: Cancellation) -> None:
        try:
            ps = read(self._client.fetch("ps", None, LOOK_SECONDS, cancellation))
        except GatewayError:
            self._inventory.ps.forget()
        else:
            self._inventory.note_loaded(model, ps)

    def _unloading(self, model: str) -> Callable[[Cancellation], None]:
        def work(cancellation: Cancellation) -> None:
            body = {"model": model, "keep_alive": 0}
            self._client.fetch("generate", body, LOOK_SECONDS, cancellation)
            self._inventory.ps.forget()

        return work
