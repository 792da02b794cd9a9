"""Bytes that break the rules of HTTP itself: those of a request with an error in them. Pure."""

from collections.abc import Callable
from random import Random

from tests.faults.fuzz import Sent, cut, flip, insert

ByteChange = Callable[[bytes, Random], bytes]
END = b"\r\n\r\n"

# --- How a body is framed -----------------------------------------------------------------------


def framed(sent: Sent, dice: Random) -> bytes:
    """Return a request's bytes, its body framed by its length or in chunks, well or badly."""
    known = {name.lower() for name, _ in sent.headers}
    head = sent.head().removesuffix(b"\r\n")
    if dice.random() < 0.8:
        head += b"Connection: close\r\n"
    if known & {b"content-length", b"transfer-encoding"}:
        return head + b"\r\n" + sent.body
    if dice.random() < 0.25:
        return head + b"Transfer-Encoding: chunked\r\n\r\n" + chunked(sent.body, dice)
    return head + b"Content-Length: %d\r\n\r\n" % len(sent.body) + sent.body


def chunked(body: bytes, dice: Random) -> bytes:
    size = dice.choice((1, 7, 4_096)) if len(body) < 1_000 else 4_096
    pieces = [body[at : at + size] for at in range(0, len(body), size)]
    chunks = [b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces]
    if chunks and dice.random() < 0.5:
        chunks[dice.randrange(len(chunks))] = dice.choice(BAD_CHUNKS)
    return b"".join(chunks) + dice.choice(LAST_CHUNKS)


BAD_CHUNKS = (
    *(
        b"zz\r\nhello\r\n",
        b"-1\r\nh\r\n",
        b"5\nhello\n",
        b"5\r\nhello",
        b"ffffffffffffffff\r\nh\r\n",
    ),
    *(b"5;" + b"x" * 70_000 + b"\r\nhello\r\n", b"0x5\r\nhello\r\n", b" 5\r\nhello\r\n", b"\r\n"),
    *(b"5 ; a=b\r\nhello\r\n", b"5\r\nhel", b"+5\r\nhello\r\n", b"5_0\r\nhello\r\n", b"\0"),
)
LAST_CHUNKS = (
    *(
        b"0\r\n\r\n",
        b"0\r\n\r\n",
        b"0\r\n\r\n",
        b"",
        b"0\r\n",
        b"0",
        b"0;x=y\r\n\r\n",
        b"00\r\n\r\n",
    ),
    *(
        b"0\r\nAuthorization: Bearer x\r\n\r\n",
        b"0\r\nX\r\n\r\n",
        b"0\r\n" + b"X: y\r\n" * 500 + END,
    ),
)

# --- Bytes of the whole -------------------------------------------------------------------------


def change_head(request: bytes, dice: Random) -> bytes:
    """Change some bytes before the body, where most is interpreted."""
    head, end, body = request.partition(END)
    return dice.choice((flip, flip, insert_control, insert))(head, dice) + end + body


def insert_control(request: bytes, dice: Random) -> bytes:
    at = dice.randrange(len(request) + 1)
    return request[:at] + dice.choice(CONTROLS) + request[at:]


def add_line(request: bytes, dice: Random) -> bytes:
    """Add a header in an unexpected position, or an unexpected header."""
    lines = request.split(b"\r\n")
    at = dice.randrange(1, max(2, request.count(b"\r\n", 0, request.find(END) + 2)))
    return b"\r\n".join([*lines[:at], dice.choice(LINES), *lines[at:]])


def repeat_line(request: bytes, dice: Random) -> bytes:
    head, end, body = request.partition(END)
    lines = head.split(b"\r\n")
    return b"\r\n".join([*lines, *[dice.choice(lines)] * dice.choice((1, 1, 2, 150))]) + end + body


def change_ends(request: bytes, dice: Random) -> bytes:
    """End the lines of the head in another way."""
    head, end, body = request.partition(END)
    other = dice.choice((b"\n", b"\r", b"\r\r\n", b"\r\n ", b"\n\r", b"\0\r\n"))
    return head.replace(b"\r\n", other, dice.choice((1, -1))) + end + body


def change_version(request: bytes, dice: Random) -> bytes:
    return request.replace(b"HTTP/1.1", dice.choice(VERSIONS), 1)


def pipeline(request: bytes, dice: Random) -> bytes:
    """Send more than one request at once."""
    other = dice.choice(
        (request, b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n", b"GARBAGE\r\n")
    )
    return request.replace(b"Connection: close", b"X: y", 1) + other * dice.choice((1, 2, 20))


def start_otherwise(request: bytes, dice: Random) -> bytes:
    return dice.choice(STARTS) + request


def nothing(request: bytes, dice: Random) -> bytes:
    return request


CONTROLS = (b"\r", b"\n", b"\r\n", b"\0", b"\t", b" ", b"\x0b", b"\x7f", b"\x80", b"\r\n\r\n", b":")
VERSIONS = (
    *(b"HTTP/1.0", b"HTTP/1.2", b"HTTP/2.0", b"HTTP/9.9", b"HTTP/0.9", b"http/1.1", b"HTTP/1"),
    *(b"HTTP/1.1 x", b"", b"HTTP/-1.1", b"HTTP/1.\xb9", b"HTTPS/1.1", b"HTTP/1.1" + b"1" * 5_000),
)
STARTS = (
    *(b"\r\n", b"\r\n" * 2_000, b"\0", b" ", b"\xef\xbb\xbf", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
    *(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"PROXY TCP4 1.1.1.1 2.2.2.2 1 2\r\n"),
    *(b"\r\n\r\n\0\r\nQUIT\n", b"GET /healthz\r\n", b"SSH-2.0-x\r\n", b"x" * 10_000),
)
LINES = (
    *(b"X: " + b"y" * 8_180, b"X: " + b"y" * 70_000, b"X" * 9_000 + b": y", b": y", b"X", b" X: y"),
    *(b"X : y", b"X:", b"X\t: y", b"X: \xff\xfe", b"X: a\0b", b"X: a\r\n b", b"X(: y", b"\xe9: y"),
    *(b"X-%d: y\r\n" * 150 % tuple(range(150)), b"Content-Length: 0", b"Content-Length: -1"),
    *(b"Content-Length: 9999999999", b"Content-Length: 1e3", b"Content-Length: 5, 5", b"TE: x"),
    *(b"Content_Length: 3", b"Transfer_Encoding: chunked", b"HTTP_HOST: x", b"REMOTE_USER: x"),
    *(b"Transfer-Encoding: chunked", b"Transfer-Encoding: gzip", b"Transfer-Encoding: x, chunked"),
    *(b"Transfer-Encoding: chunked, chunked", b"Transfer-Encoding:\x0bchunked", b"Trailer: Host"),
    *(b"Expect: 100-continue", b"Expect: x", b"Upgrade: h2c", b"Upgrade: websocket", b"Host:"),
    *(b"Host: evil.example", b"Host: localhost", b"HTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA"),
    *(b"Connection: Upgrade, HTTP2-Settings", b"Connection: keep-alive", b"Keep-Alive: 99999"),
    *(b"X-Forwarded-Proto: https", b"X-Forwarded-Proto: http\r\nX-Forwarded-Ssl: on"),
    *(b"SCRIPT_NAME: /x", b"SCRIPT-NAME: /x", b"PATH_INFO: /admin/", b"Script_Name: /api"),
)
CHANGES: tuple[ByteChange, ...] = (
    *(change_head, change_head, flip, cut, insert, insert_control, add_line, add_line, repeat_line),
    *(change_ends, change_version, pipeline, start_otherwise, nothing),
)


def spoiled(sent: Sent, dice: Random) -> bytes:
    """Return the bytes of a request, with something wrong in them."""
    request = framed(sent, dice)
    for _ in range(dice.choice((1, 1, 1, 2))):
        request = dice.choice(CHANGES)(request, dice)
    return request
