"""The embedded model server, with a route that reports what its engine does.

`python -m tests.servers.observed_engine PARALLEL`
"""

import json
import sys
import time
from collections.abc import Iterable
from typing import Any

from embedded.engine import Engine, _Run
from embedded.messages import StartResponse
from embedded.server import EmbeddedServer, listen
from embedded.slots import ClientDisconnected
from embedded.wsgi import Application

PATH = "/observe"


class ObservedApplication(Application):
    """Counts generations that ended with their client, and the prompt tokens each one processed."""

    def __init__(self, engine: Engine) -> None:
        super().__init__(engine)
        self._disconnected = 0
        self._processed: list[int] = []
        self._generate, self._completion = engine.generate, _Run.completion
        engine.generate = self._counted  # type: ignore[method-assign]
        _Run.completion = lambda run: self._noted(run)  # type: ignore[method-assign, assignment]

    def __call__(self, environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        if environ["PATH_INFO"] != PATH:
            return super().__call__(environ, start_response)
        body = json.dumps(self._state()).encode()
        start_response("200 OK", [("Content-Length", str(len(body)))])
        return [body]

    def _state(self) -> dict[str, Any]:
        return {
            "in_use": self.engine.slots.in_use,
            "queued": self.engine.slots.queued,
            "disconnected": self._disconnected,
            "processed": self._processed,
            "cpu_seconds": time.process_time(),
        }

    def _counted(self, *args: Any, **options: Any) -> Any:
        try:
            return self._generate(*args, **options)
        except ClientDisconnected:
            self._disconnected += 1
            raise

    def _noted(self, run: _Run) -> Any:
        assert run._last is not None
        self._processed.append(run._last["timings"]["prompt_n"])
        return self._completion(run)


class ObservedServer(EmbeddedServer):
    def load(self) -> Application:
        return ObservedApplication(super().load().engine)


if __name__ == "__main__":
    ObservedServer(listen("127.0.0.1", 0), int(sys.argv[1])).run()
