"""Unload a model that a schema has stopped.

llama.cpp compiles a schema's grammar in the one thread that serves all customers of a model, and
does not notice a disconnect meanwhile. `schemas` rejects what is known to take long; this module is
for the rest. Ollama ends the process of a model within a second when it is told to unload it.

A model without responses here may merely be idle, or serve other processes of the gateway. So it is
asked for one token first.
"""

import json
import logging
import threading
import time
from collections.abc import Iterator
from typing import Any

from django.conf import settings

from gateway.errors import GatewayError, UpstreamStalled
from gateway.upstream.cancellation import Cancellation
from gateway.upstream.client import LineStream, OllamaClient

logger = logging.getLogger(__name__)

LOOK_SECONDS = 0.5


class StuckModels:
    """The models of one server that a request with a schema was left on, and when each model last
    sent a line. A thread watches them while there are any."""

    def __init__(self, client: OllamaClient) -> None:
        self._client = client
        self._left_at: dict[str, float] = {}
        self._heard_at: dict[str, float] = {}
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def ask(self, route: str, body: dict[str, Any], cancellation: Cancellation) -> LineStream:
        """Ask the model server as `OllamaClient.ask` does, and note what its model does."""
        model, has_schema = body["model"], isinstance(body.get("format"), dict)
        try:
            stream = self._client.ask(route, body, cancellation)
        except GatewayError:
            if has_schema and cancellation.reason is not None:
                self.left(model)
            raise
        return _ObservedLines(stream, self, model, has_schema)

    def heard(self, model: str) -> None:
        self._heard_at[model] = time.monotonic()

    def left(self, model: str) -> None:
        with self._lock:
            self._left_at[model] = time.monotonic()
            if self._thread is None:
                self._start()

    def _start(self) -> None:
        thread = threading.Thread(target=self._run, name="stuck-models", daemon=True)
        try:
            thread.start()
        except RuntimeError as error:
            logger.error("Models that may be stuck are not checked: %s", error)
        else:
            self._thread = thread

    def _run(self) -> None:
        while True:
            time.sleep(LOOK_SECONDS)
            for model in self._due():
                self._unload_if_stuck(model)
                self._forget(model)
            with self._lock:
                if not self._left_at:
                    self._thread = None
                    return

    def _due(self) -> list[str]:
        """Return the models that were silent for long enough; forget those that were heard."""
        before = time.monotonic() - settings.STUCK_MODEL_SECONDS
        with self._lock:
            for model in [model for model in self._left_at if not self._is_silent(model)]:
                del self._left_at[model]
            return [model for model, left_at in self._left_at.items() if left_at < before]

    def _is_silent(self, model: str) -> bool:
        return self._heard_at.get(model, 0.0) <= self._left_at.get(model, float("inf"))

    def _forget(self, model: str) -> None:
        with self._lock:
            self._left_at.pop(model, None)

    def _unload_if_stuck(self, model: str) -> None:
        try:
            if not self._client.fetch("ps").get("models"):
                return
            if self._answers(model) or not self._is_silent(model):
                return
            logger.error(
                "After a client had left a request with a JSON schema, the model %s gave nobody a "
                "token for %s s. It is unloaded.",
                model,
                settings.STUCK_MODEL_SECONDS,
            )
            self._client.fetch("generate", {"model": model, "keep_alive": 0, "stream": False})
        except GatewayError as error:
            logger.warning("A model that may be stuck cannot be checked: %s", error)
        except Exception:
            logger.exception("A model that may be stuck cannot be checked")

    def _answers(self, model: str) -> bool:
        """Tell whether the model writes one token within STUCK_MODEL_SECONDS."""
        one = {"model": model, "prompt": "a", "raw": True, "stream": False}
        one["options"] = {"num_predict": 1}
        try:
            self._client.fetch("generate", one, seconds=settings.STUCK_MODEL_SECONDS)
        except UpstreamStalled:
            return False
        return True


class _ObservedLines:
    """An answer whose lines are noted."""

    def __init__(
        self, stream: LineStream, models: StuckModels, model: str, has_schema: bool
    ) -> None:
        self._stream = stream
        self._models = models
        self._model = model
        self._has_schema = has_schema
        self.is_framed = stream.is_framed
        self._last = b""
        self._is_whole = False

    def lines(self) -> Iterator[bytes]:
        for line in self._stream.lines():
            self._models.heard(self._model)
            self._last = line
            yield line
        self._is_whole = True

    def close(self) -> None:
        if self._has_schema and not (self._is_whole or _is_done(self._last)):
            self._models.left(self._model)
        self._stream.close()


def _is_done(line: bytes) -> bool:
    try:
        last = json.loads(line)
    except (ValueError, RecursionError):
        return False
    return isinstance(last, dict) and last.get("done") is True
