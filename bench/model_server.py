"""A model server for load tests: it serves Ollama's chat routes at very low cost.

Run by path, in a process of its own: `python bench/model_server.py PORT`. The request decides what
it gets: `options.num_predict` tokens, with `options.seed` milliseconds before each.
"""

import asyncio
import json
import sys
import time
from datetime import UTC, datetime

MODEL = "bench:latest"
DETAILS = {"format": "gguf", "family": "llama", "parameter_size": "1B"}
ENTRY = {
    "name": MODEL,
    "model": MODEL,
    "modified_at": "2026-01-01T00:00:00Z",
    "size": 1_000_000,
    "digest": "0" * 64,
    "details": DETAILS,
}
LOADED = {**ENTRY, "expires_at": "2126-01-01T00:00:00Z", "size_vram": 0, "context_length": 32_768}
SHOW = {
    "details": DETAILS,
    "capabilities": ["completion", "tools"],
    "model_info": {"general.architecture": "llama", "llama.context_length": 32_768},
    "template": "{{ .Prompt }}",
}
FIXED = {
    "/": b"Ollama is running",
    "/api/version": b'{"version":"0.30.0"}',
    "/api/tags": json.dumps({"models": [ENTRY]}).encode(),
    "/api/ps": json.dumps({"models": [LOADED]}).encode(),
    "/api/show": json.dumps(SHOW).encode(),
}


def chunk(path: str, text: str, **last: object) -> bytes:
    said: dict[str, object] = (
        {"message": {"role": "assistant", "content": text}}
        if path == "/api/chat"
        else {"response": text}
    )
    created = datetime.now(UTC).isoformat()
    native = {"model": MODEL, "created_at": created, **said, "done": bool(last), **last}
    return json.dumps(native, separators=(",", ":")).encode() + b"\n"


def last(path: str, text: str, tokens: int, began: float) -> bytes:
    took = int((time.monotonic() - began) * 1e9)
    counts = {"prompt_eval_count": 20, "prompt_eval_duration": 1, "eval_count": tokens}
    times = {"eval_duration": took, "load_duration": 1, "total_duration": took}
    return chunk(path, text, done_reason="stop", **counts, **times)


async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer requests on one connection until it ends."""
    try:
        while await _answer(reader, writer):
            await writer.drain()
    except (asyncio.IncompleteReadError, ConnectionError):
        pass
    finally:
        writer.close()


async def _answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    path = head.split(b" ", 2)[1].partition(b"?")[0].decode()
    body = await _body(reader, head)
    keeps = b"connection: close" not in head
    if path in FIXED:
        _whole(writer, FIXED[path])
        return keeps
    asked = json.loads(body)
    options = asked.get("options") or {}
    tokens, pause = int(options.get("num_predict") or 20), int(options.get("seed") or 0) / 1000
    began = time.monotonic()
    if asked.get("stream") is False:
        await asyncio.sleep(pause * tokens)
        _whole(writer, last(path, " word" * tokens, tokens, began))
        return keeps
    writer.write(
        b"HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\n"
        b"Transfer-Encoding: chunked\r\n\r\n"
    )
    for _ in range(tokens):
        if pause:
            await asyncio.sleep(pause)
        _part(writer, chunk(path, " word"))
        await writer.drain()
    _part(writer, last(path, "", tokens, began))
    writer.write(b"0\r\n\r\n")
    return keeps


async def _body(reader: asyncio.StreamReader, head: bytes) -> bytes:
    if b"transfer-encoding: chunked" in head:
        parts = []
        while size := int(await reader.readline(), 16):
            parts.append(await reader.readexactly(size))
            await reader.readline()
        await reader.readline()
        return b"".join(parts)
    _before, found, rest = head.partition(b"content-length:")
    return await reader.readexactly(int(rest.split(b"\r\n")[0])) if found else b""


def _whole(writer: asyncio.StreamWriter, body: bytes) -> None:
    head = (
        f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    writer.write(head.encode() + body)


def _part(writer: asyncio.StreamWriter, data: bytes) -> None:
    writer.write(b"%x\r\n%b\r\n" % (len(data), data))


async def main(port: int) -> None:
    server = await asyncio.start_server(serve, "127.0.0.1", port, backlog=4096)
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1])))
