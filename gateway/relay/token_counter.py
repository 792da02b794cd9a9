"""Count tokens: from the model server's last line, or chunk by chunk. Pure."""

import json
from collections.abc import Mapping
from typing import Any

from gateway.metering import CountSource, Usage
from gateway.upstream.chunk import Chunk
from gateway.upstream.protocol import MAX_BELIEVABLE
from gateway.validation.rules import utf8_bytes

# A token can be split in two where thinking ends in its middle; so a few chunks may be too many.
SLACK = 8
# A tool call comes as one chunk, however long it is.
BYTES_PER_CALL_TOKEN = 4
# What a model may read beyond the bound of a prompt: a long system prompt of its own.
BEYOND_PROMPT_BOUND = 4096


def tokens_in(chunk: Chunk) -> int:
    """Return the tokens of a chunk as they are counted here: one for text or thinking, and what
    the bytes of a tool call come to. Bytes would count half as much again for text."""
    said = int(bool(chunk.text or chunk.thinking))
    if not chunk.tool_calls:
        return said
    called = sum(map(_call_bytes, chunk.tool_calls))
    return said + max(1, -(-called // BYTES_PER_CALL_TOKEN))


def _call_bytes(call: Mapping[str, Any]) -> int:
    """Return the bytes of a call's name and arguments, as a model writes them."""
    function = call.get("function")
    if not isinstance(function, dict):
        return 0
    arguments = function.get("arguments") or ""
    if not isinstance(arguments, str):
        arguments = json.dumps(arguments, ensure_ascii=False, separators=(",", ":"))
    return utf8_bytes(str(function.get("name") or "") + arguments)


class TokenCounter:
    """What one answer has used so far.

    `prompt_bound`: what the hold covers of the prompt. `has_format`: Ollama may run a thinking
    model twice, and count the second run alone, whose prompt holds the thinking of the first.
    """

    def __init__(
        self,
        prompt_estimate: int,
        completion_bound: int,
        *,
        prompt_bound: int = MAX_BELIEVABLE,
        has_format: bool = False,
    ) -> None:
        self.prompt_estimate = prompt_estimate
        self.completion_bound = completion_bound
        self.prompt_bound = prompt_bound
        self.has_format = has_format
        self.produced = 0
        # Chunks with output. A chunk is one token or more, so this never counts too many.
        self.output_chunks = 0
        # Prompt tokens of the parts that were read, where an answer comes in parts.
        self.read: int | None = None
        self.started = False
        self._thought = False

    def add(self, chunk: Chunk) -> None:
        self.started = True
        self.produced += tokens_in(chunk)
        self.output_chunks += chunk.carries_output
        self._thought = self._thought or bool(chunk.thinking)
        if not chunk.done and chunk.prompt_tokens is not None:
            self.read = (self.read or 0) + chunk.prompt_tokens

    @property
    def billable_tokens(self) -> int:
        """Return the tokens produced, at most as many as were allowed: the hold covers no more."""
        return min(self.produced, self.completion_bound)

    @property
    def over_limit(self) -> bool:
        """Tell whether more chunks came than tokens were allowed, with SLACK for split tokens."""
        return self.output_chunks >= self.completion_bound + SLACK

    def partial(self, *, delivered: bool = True) -> Usage:
        """Return the usage of a response that ended early. `delivered`: it was streamed."""
        if not self.started:
            return Usage(source=CountSource.COUNTED, started=False)
        read = self.prompt_estimate if self.read is None else self._prompt(self.read, raised=0)
        counted = (read, self.billable_tokens, CountSource.COUNTED)
        return Usage(*counted, started=True, delivered=delivered)

    def final(self, last: Chunk) -> Usage:
        """Return the usage of a complete response: upstream's counts, ours where they are missing
        or cannot be.

        Ollama leaves a count of zero out, so a missing one is zero only if nothing was produced.
        """
        prompt, completion = last.prompt_tokens, last.completion_tokens
        if prompt is None and completion is None:
            return self.partial()  # A last chunk of ours, in place of one that did not come.
        if completion is None and self.produced == 0:
            completion = 0
        written = self._completion(completion)
        if prompt is None:
            return Usage(self.prompt_estimate, written, CountSource.ESTIMATED, started=True)
        read = self._prompt(prompt, raised=written - (completion or written))
        is_theirs = (read, written) == (prompt, completion)
        source = CountSource.UPSTREAM if is_theirs else CountSource.COUNTED
        return Usage(read, written, source, started=True)

    def _completion(self, count: int | None) -> int:
        """Return what was written: no less than was relayed, and no more than was allowed."""
        if count is None:
            return self.billable_tokens
        relayed = self.output_chunks if self.output_chunks - count > SLACK else count
        return min(relayed, self.completion_bound)

    def _prompt(self, count: int, raised: int) -> int:
        """Return what was read. What the completion was raised by stands in the second run's
        prompt too, and is billed once."""
        if raised > 0 and self.has_format and self._thought:
            count = min(count, max(self.prompt_estimate, count - raised))
        return self.prompt_bound if self.is_beyond(count) else count

    def is_beyond(self, prompt_tokens: int | None) -> bool:
        """Tell whether the model server counted more of the prompt than there can be."""
        return (prompt_tokens or 0) > self.prompt_bound + BEYOND_PROMPT_BOUND
