"""Look at an image's first bytes before the model server decodes all of it. Pure.

A small file can claim to be enormous, and the decoder believes it; so only formats whose size is
read here are let through.
"""

import base64
import binascii
import struct

MAX_PIXELS = 40_000_000

PNG_START = b"\x89PNG\r\n\x1a\n"
JPEG_START = b"\xff\xd8"
# Start-of-frame markers; the three left out are tables, not frames (ITU T.81, table B.1).
JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
# Markers without a length, and the fill byte: a decoder steps over them one by one. A parser
# that read a length there would miss the frame that counts. No encoder writes one before a frame.
JPEG_BARE = frozenset({0x00, 0x01, *range(0xD0, 0xDA), 0xFF})
# A photograph with all its profiles has a few hundred.
MAX_SEGMENTS = 1000


class InvalidImage(ValueError):
    """Not an image that may go to the model server; the message says why."""


def check(encoded: str, max_bytes: int) -> None:
    """Raise InvalidImage unless this is base64 of a PNG or JPEG within the limits."""
    if encoded.startswith("data:"):
        raise InvalidImage("must be plain base64, without a 'data:' prefix")
    if len(encoded) > max_bytes * 4 // 3 + 4:
        raise InvalidImage(f"is larger than {max_bytes} bytes")
    try:
        data = base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError):
        raise InvalidImage("is not valid base64") from None
    width, height = size(data)
    if not 0 < width * height <= MAX_PIXELS:
        raise InvalidImage(f"has {width} x {height} pixels; at most {MAX_PIXELS} are accepted")


def size(data: bytes) -> tuple[int, int]:
    """Return width and height in pixels, as the file itself claims; raise InvalidImage."""
    try:
        if data.startswith(PNG_START) and data[12:16] == b"IHDR":
            return struct.unpack(">II", data[16:24])
        if data.startswith(JPEG_START):
            return _jpeg_size(data)
    except (struct.error, IndexError):
        raise InvalidImage("is cut short") from None
    raise InvalidImage("is neither PNG nor JPEG")


def _jpeg_size(data: bytes) -> tuple[int, int]:
    at = 2
    for _ in range(MAX_SEGMENTS):
        if data[at] != 0xFF or data[at + 1] in JPEG_BARE:
            break
        if data[at + 1] in JPEG_FRAMES:
            height, width = struct.unpack(">HH", data[at + 5 : at + 9])
            return width, height
        at += 2 + struct.unpack(">H", data[at + 2 : at + 4])[0]
    raise InvalidImage("is not a readable JPEG")
