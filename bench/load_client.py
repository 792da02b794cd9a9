"""Send chat requests over a number of connections, and print what was measured as JSON.

Run by path, in a process of its own, with one JSON argument (see `Load`). It speaks HTTP/1.1 on raw
sockets, so that its own cost stays far below that of what it measures.
"""

import asyncio
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from urllib.parse import urlsplit


@dataclass(frozen=True)
class Load:
    """`clients` connections, each with one request at a time, `requests` in all.

    `tokens`: how many the model server writes; `pause_ms`: how long it waits before each.
    """

    url: str
    key: str
    model: str
    clients: int
    requests: int
    tokens: int = 20
    pause_ms: int = 0
    stream: bool = False
    path: str = "/v1/chat/completions"

    def request(self) -> bytes:
        asked = {
            "model": self.model,
            "messages": [{"role": "user", "content": "Tell me a story about a lighthouse."}],
            "max_tokens": self.tokens,
            "seed": self.pause_ms,
            "stream": self.stream,
        }
        if self.path.startswith("/api/"):
            options = {"num_predict": self.tokens, "seed": self.pause_ms}
            asked = {**asked, "options": options, "max_tokens": None, "seed": None}
            asked = {name: value for name, value in asked.items() if value is not None}
        body = json.dumps(asked).encode()
        host = urlsplit(self.url).netloc
        head = (
            f"POST {self.path} HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {self.key}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        return head.encode() + body


@dataclass
class Measured:
    """Seconds of each successful request to its first chunk and to its end; failed requests."""

    first: list[float] = field(default_factory=list)
    whole: list[float] = field(default_factory=list)
    chunks: int = 0
    failed: int = 0
    seconds: float = 0.0
    client_cpu: float = 0.0
    errors: list[str] = field(default_factory=list)


class Failed(Exception):
    """A failed response."""


async def drive(load: Load) -> Measured:
    found, left = Measured(), iter(range(load.requests))
    began = time.monotonic()
    await asyncio.gather(*(_client(load, left, found) for _ in range(load.clients)))
    found.seconds, found.client_cpu = time.monotonic() - began, time.process_time()
    return found


async def _client(load: Load, left: Iterator[int], found: Measured) -> None:
    """Send requests one after another until none is left."""
    place, request = urlsplit(load.url), load.request()
    reader, writer = None, None
    for _ in left:
        try:
            if writer is None or reader is None:
                reader, writer = await asyncio.open_connection(place.hostname, place.port)
            began = time.monotonic()
            writer.write(request)
            first, chunks, keeps = await _response(reader)
            found.first.append(first - began)
            found.whole.append(time.monotonic() - began)
            found.chunks += chunks
        except (Failed, OSError, asyncio.IncompleteReadError, ValueError) as error:
            found.failed += 1
            found.errors = [*found.errors, f"{type(error).__name__}: {error}"[:200]][:3]
            keeps = False
        if not keeps and writer is not None:
            writer.close()
            reader = writer = None
    if writer is not None:
        writer.close()


async def _response(reader: asyncio.StreamReader) -> tuple[float, int, bool]:
    """Read one response; return the time of its first chunk, the number of chunks, and whether the
    connection stays open."""
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    keeps = b"connection: close" not in head
    _before, sized, rest = head.partition(b"content-length:")
    if sized:
        body = await reader.readexactly(int(rest.split(b"\r\n")[0]))
        first, chunks = time.monotonic(), 1
    else:
        first, chunks, body = await _chunked(reader)
    if not head.startswith(b"http/1.1 200"):
        raise Failed(body[:150].decode("utf-8", "replace"))
    return first, chunks, keeps


async def _chunked(reader: asyncio.StreamReader) -> tuple[float, int, bytes]:
    first, parts = 0.0, 0
    body = b""
    while size := int(await reader.readline(), 16):
        body = await reader.readexactly(size)
        await reader.readline()
        first = first or time.monotonic()
        parts += body.count(b"\n\n") or body.count(b"\n")
    await reader.readline()
    return first, parts, body


if __name__ == "__main__":
    print(json.dumps(asdict(asyncio.run(drive(Load(**json.loads(sys.argv[1])))))))
