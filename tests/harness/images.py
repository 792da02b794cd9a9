"""Small images for requests."""

import base64
import struct

from gateway.validation import images


def png(width: int = 1, height: int = 1, first: bytes = b"IHDR") -> bytes:
    return images.PNG_START + b"\0\0\0\r" + first + struct.pack(">II", width, height) + b"\x08\2\0"


def encoded(data: bytes) -> str:
    return base64.b64encode(data).decode()
