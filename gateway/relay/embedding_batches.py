"""Embed many texts in parts, one after the other.

Ollama queues all texts of a call at once, first come, first served: while a call with hundreds of
texts runs, other clients' single texts wait for all of them. Between two parts other requests are
served, and a disconnect is noticed.

For the client, the hold and the bill it is one request: counts are added, and the renderer joins
the vectors that each part's chunk carries.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from gateway.errors import UpstreamBroke
from gateway.upstream.cancellation import Cancellation
from gateway.upstream.chunk import Chunk
from gateway.upstream.client import LineStream

Send = Callable[[dict[str, Any], Cancellation], LineStream]
Read = Callable[[bytes], Chunk]

# Of the last part's fields these are the sums over all parts.
ADDED = ("total_duration", "load_duration", "prompt_eval_count")


def parts_of(body: dict[str, Any], size: int) -> list[dict[str, Any]]:
    """Return the bodies of the calls for a body, each with at most so many texts."""
    texts = body.get("input")
    if not isinstance(texts, list) or len(texts) <= size:
        return [body]
    return [{**body, "input": texts[at : at + size]} for at in range(0, len(texts), size)]


class EmbedParts:
    """One request whose texts are embedded in parts. `send` and `read` are for a ChunkStream."""

    def __init__(self, parts: list[dict[str, Any]], send: Send, read: Read) -> None:
        self._parts = parts
        self._send = send
        self._read = read
        self._done = 0
        self._sums: dict[str, int] = {}
        # None as soon as one part had no plausible count.
        self._prompt_tokens: int | None = 0

    def send(self, cancellation: Cancellation) -> LineStream:
        """Return all parts as one response; each is requested when the one before it was read."""
        return _BatchedLines(self._parts, self._send, cancellation)

    def read(self, line: bytes) -> Chunk:
        """Read one part, with its vectors; the last chunk has the counts of all."""
        chunk = self._read(line)
        vectors = chunk.fields["embeddings"]
        if len(vectors) != len(self._parts[self._done]["input"]):
            raise UpstreamBroke()
        self._done += 1
        self._add(chunk)
        if self._done < len(self._parts):
            fields = {"embeddings": vectors}
            return Chunk(prompt_tokens=chunk.prompt_tokens, completion_tokens=0, fields=fields)
        return replace(
            chunk, prompt_tokens=self._prompt_tokens, fields={**chunk.fields, **self._sums}
        )

    def _add(self, chunk: Chunk) -> None:
        for name in ADDED:
            if type(chunk.fields.get(name)) is int:
                self._sums[name] = self._sums.get(name, 0) + chunk.fields[name]
        if self._prompt_tokens is not None and chunk.prompt_tokens is not None:
            self._prompt_tokens += chunk.prompt_tokens
        else:
            self._prompt_tokens = None


class _BatchedLines:
    """The lines of all parts, one for each."""

    is_framed = True

    def __init__(self, parts: list[dict[str, Any]], send: Send, cancellation: Cancellation) -> None:
        self._parts = parts
        self._send = send
        self._cancellation = cancellation
        self._current: LineStream | None = None

    def lines(self) -> Iterator[bytes]:
        for number, part in enumerate(self._parts):
            if number == 1:
                # The deadline of the whole was set at the first line; each call sets its own.
                self._cancellation.keep_deadline()
            self._current = self._send(part, self._cancellation)
            lines = list(self._current.lines())
            self.close()
            if len(lines) != 1:
                raise UpstreamBroke()
            yield lines[0]

    def close(self) -> None:
        if self._current is not None:
            self._current.close()
            self._current = None
