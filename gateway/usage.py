"""Count tokens: from the model server's last line, or while its answer passes. Pure."""

from collections.abc import Mapping
from typing import Any

from gateway.chunk import Chunk
from gateway.metering import CountSource, Usage

# No model reads this much at once; a larger count is a fault, not a bill.
MAX_BELIEVABLE = 20_000_000
# A token can be split in two where thinking ends in its middle; so a few pieces may be too many.
SLACK = 8


def counts(native: Mapping[str, Any]) -> tuple[int | None, int | None]:
    """Return the prompt and completion counts of a native object, None where it has none."""
    return _believable(native.get("prompt_eval_count")), _believable(native.get("eval_count"))


def _believable(count: Any) -> int | None:
    if isinstance(count, bool) or not isinstance(count, int):
        return None
    return count if 0 <= count <= MAX_BELIEVABLE else None


class Tally:
    """What one answer has used so far."""

    def __init__(self, prompt_estimate: int, completion_bound: int) -> None:
        self.prompt_estimate = prompt_estimate
        self.completion_bound = completion_bound
        # Pieces with output. A piece is one token or more, so this never counts too many.
        self.produced = 0
        # Prompt tokens of the parts that were read, where an answer comes in parts.
        self.read: int | None = None
        self.started = False

    def add(self, chunk: Chunk) -> None:
        self.started = True
        self.produced += chunk.carries_output
        if not chunk.done and chunk.prompt_tokens is not None:
            self.read = (self.read or 0) + chunk.prompt_tokens

    @property
    def written(self) -> int:
        """Return what was produced, as far as it was allowed: the hold covers no more."""
        return min(self.produced, self.completion_bound)

    @property
    def is_full(self) -> bool:
        """Tell whether more was produced than was allowed, beyond a parser's odd split."""
        return self.produced >= self.completion_bound + SLACK

    def partial(self, *, delivered: bool = True) -> Usage:
        """Return the usage of a response that ended early; a whole one has delivered nothing."""
        if not self.started:
            return Usage(source=CountSource.COUNTED, started=False)
        return Usage(
            self.prompt_estimate if self.read is None else self.read,
            self.written,
            CountSource.COUNTED,
            started=True,
            delivered=delivered,
        )

    def final(self, last: Chunk) -> Usage:
        """Return the usage of a whole answer: upstream's counts, ours where they are missing.

        Ollama leaves a count of zero out, so a missing one is zero only if nothing was produced;
        and it cannot have written more than it was allowed to.
        """
        prompt, written = last.prompt_tokens, last.completion_tokens
        if prompt is None and written is None:
            return self.partial()  # A last chunk of ours, in place of one that did not come.
        if written is None and self.produced == 0:
            written = 0
        source = CountSource.UPSTREAM
        if written is None or written > self.completion_bound:
            source = CountSource.COUNTED
            written = self.written if written is None else self.completion_bound
        if prompt is None:
            source, prompt = CountSource.ESTIMATED, self.prompt_estimate
        return Usage(prompt, written, source, started=True)
