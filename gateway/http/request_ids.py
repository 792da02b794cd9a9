"""Make request ids: UUIDv7 (RFC 9562), so that rows written in order of time sort so."""

import secrets
import time
from uuid import UUID


def new_request_id() -> UUID:
    return uuid7(time.time_ns() // 1_000_000, secrets.randbits(74))


def uuid7(unix_ms: int, random_bits: int) -> UUID:
    """Return the UUIDv7 of a time in milliseconds and 74 random bits."""
    version, variant = 0x7 << 76, 0b10 << 62
    high, low = random_bits >> 62, random_bits & ((1 << 62) - 1)
    return UUID(int=(unix_ms & ((1 << 48) - 1)) << 80 | version | high << 64 | variant | low)
