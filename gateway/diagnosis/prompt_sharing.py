"""Measure whether a model server answers a text that it has read before faster, over salts too."""

import secrets
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from gateway import catalogue
from gateway.metering import Operation
from gateway.scheduling.inventory import Models
from gateway.validation import isolation

Ask = Callable[[str, dict[str, Any]], dict[str, Any]]

# Random words, a few hundred tokens: long enough to time, short enough for any context.
WORDS = 120
# A text that is read in less than this part of the time was in the cache.
KNOWN = 0.5


@dataclass(frozen=True, slots=True)
class Times:
    """Milliseconds for reading a new text, the same again, and the same behind another salt."""

    first: float
    again: float
    other: float

    @property
    def is_cached(self) -> bool:
        return self.again < self.first * KNOWN

    @property
    def is_shared(self) -> bool:
        return self.is_cached and self.other < self.first * KNOWN


def choose(tags: Models, ps: Models) -> str | None:
    """Return a model to ask: one in memory, else the smallest; None where none writes text."""
    writing = [one for one in catalogue.entries_of(tags.listing) if _writes(one)]
    sized = sorted(writing, key=lambda one: (not ps.has(catalogue.name_of(one)), _size(one)))
    names = [name for one in sized if tags.has(name := catalogue.name_of(one))]
    return names[0] if names else None


def _writes(entry: dict[str, Any]) -> bool:
    """Tell whether a model writes text. Older listings do not say; then its family tells."""
    able = entry.get("capabilities")
    if isinstance(able, list):
        return "completion" in able
    details = entry.get("details")
    return "bert" not in str(details.get("family") if isinstance(details, dict) else "")


def _size(entry: dict[str, Any]) -> int:
    size = entry.get("size")
    return size if isinstance(size, int) else 0


def measure(ask: Ask, model: str, *, keep: bool) -> Times:
    """Ask a model three times for one token; it is unloaded after that unless `keep`."""
    text = " ".join(secrets.token_hex(3) for _ in range(WORDS))
    # No account has these salts. They serve this measurement alone.
    ours, theirs = (isolation.salt_of(0, secrets.token_hex(16)) for _ in range(2))
    try:
        _read(ask, model, ours, "Hello.")  # So that no time of loading is measured.
        return Times(*(_read(ask, model, salt, text) for salt in (ours, ours, theirs)))
    finally:
        if not keep:
            ask("generate", {"model": model, "keep_alive": 0})


def _read(ask: Ask, model: str, salt: str, text: str) -> float:
    """Return how many milliseconds the model server says that it read a prompt."""
    body: dict[str, Any] = {
        "model": model,
        "messages": [{"role": "user", "content": text}],
        "stream": False,
        "options": {"num_predict": 1},
    }
    isolation.isolate(body, Operation.CHAT, salt)
    nanoseconds = ask("chat", body).get("prompt_eval_duration")
    return nanoseconds / 1e6 if isinstance(nanoseconds, int) else 0.0
