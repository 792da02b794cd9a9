"""What a large body may cost, before it is parsed. Pure.

A parser makes an object of fifty bytes or more from every two bytes of `[],[],…`, and nobody else
runs in this process meanwhile. So a body's values are counted before they are made, the images are
taken out of it first, and one worker has room for so many bytes of large bodies at a time.
"""

import json
import re
import secrets
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from gateway.errors import BadRequest, GatewayBusy, TooLarge

# Below this a body can hold nothing that is dear to parse, and is read without further questions.
LARGE_BYTES = 256 * 1024
# A JSON string of an image's letters. A quote inside a string stands behind a backslash, and behind
# a closing quote none of these letters can follow: so what this finds in valid JSON is one whole
# string, and what it finds elsewhere leaves the rest as invalid as it was. Some clients write `/`
# with a backslash; the possessive repeats keep the search linear.
BLOB = re.compile(
    rb'"(?<!\\")(?:data:image/[a-z+.-]{1,20};base64,)?[A-Za-z0-9+/=\\]{4096,}+(?<!\\)"'
)
STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"', re.DOTALL)
# Text of one byte in UTF-8 that a client writes as an escape takes two bytes, or three for every
# two bytes of Greek or Cyrillic; and structure comes on top.
ESCAPED_TEXT = 3
# Base64 makes four letters of three bytes, and one in 64 may be a slash behind a backslash.
ESCAPED_BASE64 = 1.5
STRUCTURE_BYTES = 1024 * 1024
# How many quotes a value may account for, those inside its text included.
QUOTES_PER_VALUE = 10


class Room:
    """So many bytes of large bodies may be read and parsed at a time in this process."""

    def __init__(self, timeout: float = 5.0) -> None:
        self._taken = 0
        self._timeout = timeout
        self._changed = threading.Condition()

    @contextmanager
    def of(self, size: int, limit: int) -> Iterator[None]:
        """Wait for room; raise GatewayBusy where there is none for too long."""
        self.take(size, limit)
        try:
            yield
        finally:
            self.give(size)

    def take(self, size: int, limit: int) -> None:
        """Wait for room and take it, until it is given back; raise GatewayBusy."""
        with self._changed:
            if not self._changed.wait_for(lambda: self._taken + size <= limit, self._timeout):
                raise GatewayBusy()
            self._taken += size

    def give(self, size: int) -> None:
        with self._changed:
            self._taken -= size
            self._changed.notify_all()


room = Room()


# --- Images ---------------------------------------------------------------------------------------


class Lifted:
    """A body without its images, and the images, each known by a name nobody can guess."""

    def __init__(self, body: bytes | bytearray, limit: int, max_image_bytes: int) -> None:
        """Raise TooLarge for a body that is, without its images, larger than any prompt makes it,
        or for an image that is too large; ValueError where an image is no JSON string."""
        self._name = secrets.token_hex(8)
        self._blobs: list[str] = []
        self.rest = bytearray()
        at = 0
        with memoryview(body) as view:
            for found in [*BLOB.finditer(body), None]:
                start = found.start() if found else len(body)
                if len(self.rest) + start - at > limit:
                    raise TooLarge(f"The body is larger than {limit} bytes without its images.")
                self.rest += view[at:start]
                if found:
                    at = found.end()
                    if at - start > max_image_bytes * ESCAPED_BASE64 + 100:
                        raise TooLarge(f"An image is larger than {max_image_bytes} bytes.")
                    self.rest += self._lift(str(view[start:at], "ascii"))

    def _lift(self, blob: str) -> bytes:
        self._blobs.append(json.loads(blob) if "\\" in blob else blob[1:-1])
        return f'"{self._name}-{len(self._blobs) - 1}"'.encode()

    def put_back(self, value: dict[str, Any]) -> dict[str, Any]:
        """Return the parsed rest with each image in its place; one in the place of a key is
        refused."""
        blobs = {f"{self._name}-{n}": blob for n, blob in enumerate(self._blobs)}
        level: list[Any] = [value] if blobs else []
        while level:
            inside = level.pop()
            for key, item in inside.items() if isinstance(inside, dict) else enumerate(inside):
                if isinstance(item, str):
                    inside[key] = blobs.pop(item, item)
                elif isinstance(item, (dict, list)):
                    level.append(item)
        if blobs:
            raise BadRequest("A key is too long.")
        return value


# --- Values ---------------------------------------------------------------------------------------


def text_limit(max_prompt_bytes: int) -> int:
    """Return the most bytes of a body without its images."""
    return ESCAPED_TEXT * max_prompt_bytes + STRUCTURE_BYTES


def check_quotes(body: bytes | bytearray, max_values: int) -> None:
    """Raise TooLarge for a body of so many quotes that looking for its strings takes long."""
    if body.count(b'"') > max_values * QUOTES_PER_VALUE:
        raise _too_many(max_values)


def check_values(rest: bytes | bytearray, max_values: int) -> None:
    """Raise TooLarge for a body that holds more values than a request needs."""
    # Cheap, and usually enough: what stands in strings is counted with the rest.
    if _separators(rest) > max_values and _separators(STRING.sub(b"", rest)) > max_values:
        raise _too_many(max_values)


def _separators(body: bytes | bytearray) -> int:
    return body.count(b",") + body.count(b"[") + body.count(b"{")


def _too_many(max_values: int) -> TooLarge:
    return TooLarge(f"The body holds more than {max_values} JSON values.")
