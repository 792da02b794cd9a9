"""Limit the memory that responses which are not streamed take in this process."""

from gateway.dialects.json_fragments import Items
from gateway.errors import TooLarge
from gateway.upstream.chunk import Chunk
from gateway.validation.large_bodies import LARGE_BYTES, Room

MEGABYTE = 1024 * 1024
# For one response, and for all responses of this process that are being built or sent. A body is
# joined from its parts, which takes its bytes a second time for a moment.
MAX_ANSWER_BYTES = 64 * MEGABYTE
MAX_BYTES = 96 * MEGABYTE

# Short: a request that waits occupies a thread, and the model server has done work for it.
room = Room(timeout=5.0)


class Share:
    """The memory of one response. `parts`: in how many parts of one size it comes, where that is
    known. Memory for all of them is taken at the first, so a response that has begun can end."""

    def __init__(self, parts: int = 1) -> None:
        self._parts = parts
        self._size = 0
        self._taken = 0

    def add(self, chunk: Chunk) -> None:
        """Count a chunk that is kept; raise TooLarge, or GatewayBusy if no memory is free."""
        self._size += sum(v.size for v in chunk.fields.values() if isinstance(v, Items))
        # The last part may be smaller than the others.
        if max(self._size, self._size * (self._parts - 1)) > MAX_ANSWER_BYTES:
            raise TooLarge(
                f"The answer is larger than {MAX_ANSWER_BYTES // MEGABYTE} MiB. Ask for less at "
                "once: fewer texts, or vectors in base64."
            )
        if self._size > self._taken and self._size * self._parts > LARGE_BYTES:
            self._take(min(self._size * self._parts + MEGABYTE, MAX_ANSWER_BYTES))
        self._parts = 1

    def _take(self, size: int) -> None:
        more = max(0, size - self._taken)
        room.take(more, MAX_BYTES)
        self._taken += more

    def release(self) -> None:
        taken, self._taken = self._taken, 0
        room.give(taken)
