"""How much memory the answers that are not streamed may take in this process."""

from gateway.dialects.json_fragments import Items
from gateway.errors import TooLarge
from gateway.upstream.chunk import Chunk
from gateway.validation.large_bodies import LARGE_BYTES, Room

MEGABYTE = 1024 * 1024
# One answer, and all answers of this process that are being made or sent. The whole body of an
# answer is joined from what is kept, which takes its bytes once more for a moment.
MAX_ANSWER_BYTES = 64 * MEGABYTE
MAX_BYTES = 96 * MEGABYTE

# Who waits for it has a thread, and the model server has done work for it.
room = Room(timeout=5.0)


class Share:
    """What one answer takes of the room. `parts`: in how many parts of one size it comes, where
    that is known; then room for all is taken at the first, and who has begun can end."""

    def __init__(self, parts: int = 1) -> None:
        self._parts = parts
        self._size = 0
        self._taken = 0

    def add(self, chunk: Chunk) -> None:
        """Count a chunk that is kept; raise TooLarge, or GatewayBusy without room."""
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
