"""The models that the fake has in memory, and how it loads one.

Facts about Ollama: it loads one model at a time; while it loads, nothing is sent; when the client
whose request began the load leaves, the load is given up, and the next request that waits begins it
anew. `/api/ps` lists a model once it is loaded.
"""

import json
import threading
from dataclasses import dataclass, field
from typing import Any, ClassVar

from tests.fakes.kinds import full_name
from tests.fakes.script import Answer, Interrupted, Step

LOADING = ("/api/generate", "/api/chat", "/api/embed", "/api/embeddings")
# Seconds between two looks of a thread that waits for a load.
LOOK_SECONDS = 0.005


@dataclass
class Load:
    """A load that has started."""

    model: str
    aborted: bool = False


@dataclass
class Memory:
    """Every installed model is in memory, until a test says which are (`models`).

    `seconds`: how long a load takes. `room`: how many models there is memory for.
    """

    models: list[str] | None = None
    seconds: float = 0.0
    room: int = 1000
    loads: list[Load] = field(default_factory=list)
    # Copies share their weights, and one that is in memory serves all of its names.
    copies: dict[str, str] = field(default_factory=dict)
    _turn: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def listed(self, installed: list[str]) -> list[str]:
        """The models that `/api/ps` names."""
        return [*installed] if self.models is None else [*self.models]

    def steps(self, path: str, body: bytes, installed: list[str]) -> list[Step]:
        """Return the steps before a response: none, a load or an unload."""
        if self.models is None or path not in LOADING:
            return []
        asked = _object(body)
        name = full_name(str(asked.get("model") or asked.get("name") or ""))
        if name not in map(full_name, installed):
            return []
        return [Unloading(self, name) if _unloads(path, asked) else Loading(self, name)]

    def load(self, name: str, answer: Answer) -> None:
        """Bring a model into memory; raise Interrupted if the client disconnects.

        A request for a model that is in memory waits for nobody's load.
        """
        if name in self._loaded():
            return
        while not self._turn.acquire(timeout=LOOK_SECONDS):
            answer.pause(0)
        try:
            if not any(self._is_same(name, one) for one in self._loaded()):
                self._begin(name, answer)
        finally:
            self._turn.release()

    def _begin(self, name: str, answer: Answer) -> None:
        load = Load(name)
        self.loads.append(load)
        # Evicted models disappear from the list before the new one is loaded.
        self.models = self._loaded()[-(self.room - 1) :] if self.room > 1 else []
        try:
            answer.pause(self.seconds)
        except Interrupted:
            load.aborted = True
            raise
        self.models = [*self._loaded(), name]

    def unload(self, name: str) -> None:
        self.models = [one for one in self._loaded() if not self._is_same(name, one)]

    def copy(self, source: str, destination: str) -> None:
        self.copies[full_name(destination)] = self._weights(full_name(source))

    def _weights(self, name: str) -> str:
        return self.copies.get(name, name)

    def _is_same(self, name: str, other: str) -> bool:
        return self._weights(name) == self._weights(other)

    def _loaded(self) -> list[str]:
        return self.models or []


@dataclass(frozen=True)
class Loading(Step):
    """Wait until a model is in memory."""

    memory: Memory
    name: str
    instant: ClassVar[bool] = False

    def play(self, answer: Answer) -> None:
        self.memory.load(self.name, answer)


@dataclass(frozen=True)
class Unloading(Step):
    """Remove a model from memory."""

    memory: Memory
    name: str
    instant: ClassVar[bool] = False

    def play(self, answer: Answer) -> None:
        self.memory.unload(self.name)


def _object(body: bytes) -> dict[str, Any]:
    try:
        found = json.loads(body)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _unloads(path: str, asked: dict[str, Any]) -> bool:
    is_empty = not (asked.get("prompt") or asked.get("messages"))
    return path in LOADING[:2] and is_empty and asked.get("keep_alive") == 0
