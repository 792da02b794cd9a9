"""Requests with something wrong in them, each made from a good one. Pure.

Every request follows from its seed alone, so that a failing one can be made again.
"""

import json
import random
import re
import string
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import quote

from django.urls import URLPattern, URLResolver

from tests.architecture.test_compatibility import ROUTES as PLAIN
from tests.architecture.test_compatibility import rows
from tests.faults import hostile_inputs

Dice = random.Random
Json = dict[str, Any]


# --- Addresses ----------------------------------------------------------------------------------

# The pages of the back-office that need no login. All others redirect to the login.
ADMIN = ("/admin/", "/admin/login/")
METHODS = ("POST", "DELETE", "GET")


@dataclass(frozen=True)
class Route:
    """A route of the URLconf, and the method that does something there."""

    path: str
    method: str

    @property
    def names_a_model(self) -> bool:
        return "<" in self.path


def routes(resolver: URLResolver, prefix: str = "/") -> Iterator[Route]:
    """Yield every route, so that a new one is tried too."""
    for entry in resolver.url_patterns:
        path = prefix + str(entry.pattern)
        if isinstance(entry, URLResolver):
            yield from routes(entry, path)
        elif not path.startswith("/admin/"):
            yield Route(path, _method(entry))
        elif path in ADMIN:
            yield Route(path, "POST" if "login" in path else "GET")


def _method(entry: URLPattern) -> str:
    view = getattr(entry.callback, "cls", None)  # None: a function, which is read.
    return next((method for method in METHODS if hasattr(view, method.lower())), "GET")


# --- Good requests ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sent:
    """A request as its bytes are sent. A client that disconnects has read the first piece only."""

    route: Route
    method: str
    target: bytes
    headers: tuple[tuple[bytes, bytes], ...]
    body: bytes = b""
    leaves: bool = False

    def head(self) -> bytes:
        lines = [b"%s %s HTTP/1.1" % (self.method.encode(), self.target)]
        lines += [b"%s: %s" % header for header in self.headers]
        return b"\r\n".join([*lines, b"", b""])


HELLO = [{"role": "user", "content": "hello"}]
SAME_AS = {
    "/generate": "/api/generate",
    "/chat": "/api/chat",
    "/embedding": "/api/embed",
    "/api/embeddings": "/api/generate",
}
MODEL_ONLY = ("/api/show", "/api/pull", "/api/delete", "/models/pull")
# For routes without a body of their own here: a field of every kind.
ANYTHING: Json = {"prompt": "hi", "messages": HELLO, "input": "hi", "max_tokens": 9}
EXAMPLES: dict[str, list[tuple[str, Any]]] = {path: [] for path in PLAIN}
for _row in rows():
    EXAMPLES[_row.route].append((_row.parameter, json.loads(_row.example)))


def plain_body(path: str) -> Json:
    """Return the smallest body that a route accepts."""
    model = {"model": "nomic-embed-text" if "embed" in path else "llama3"}
    if path in MODEL_ONLY:
        return model
    known = PLAIN.get(SAME_AS.get(path, path))
    return model | dict(known[2] if known else ANYTHING)


def plain(route: Route, key: bytes) -> Sent:
    """Return the request that each route answers with 200."""
    target = route.path.replace("<path:model>", "llama3").encode()
    headers = ((b"Host", b"localhost"), (b"Authorization", b"Bearer " + key))
    if route.method == "GET" or route.names_a_model:
        return Sent(route, route.method, target, headers)
    if route.path in ADMIN:
        form = ((b"Content-Type", b"application/x-www-form-urlencoded"),)
        return Sent(route, "POST", target, headers + form, b"username=a&password=b")
    return Sent(route, route.method, target, headers, json.dumps(plain_body(route.path)).encode())


def good(route: Route, key: bytes, dice: Dice) -> Sent:
    """Return a request as a client might send it, with parameters of the compatibility page."""
    sent = plain(route, key)
    if sent.body.startswith(b"{"):
        body: Json = json.loads(sent.body)
        examples = EXAMPLES.get(SAME_AS.get(route.path, route.path), [])
        for name, value in dice.sample(examples, min(len(examples), dice.choice((0, 0, 1, 2)))):
            body[name] = value
        if dice.random() < 0.5:
            body["stream"] = dice.random() < 0.7
        if dice.random() < 0.4:
            tempt(body, dice)
        sent = replace(sent, body=json.dumps(body).encode())
    if dice.random() < 0.2:
        sent = replace(sent, headers=(sent.headers[0], (b"x-api-key", key)))
    return replace(sent, leaves=dice.random() < 0.05)


def tempt(body: Json, dice: Dice) -> None:
    """Add fields that are dropped silently and must not be forwarded."""
    options = dict(dice.sample(hostile_inputs.OPTIONS, 4))
    body |= dict(dice.sample(hostile_inputs.EXTRAS, 3)) | (
        {"options": options} if dice.random() < 0.6 else {}
    )
    messages = body.get("messages")
    if isinstance(messages, list) and messages:
        body["messages"] = [{**messages[0], **dict(hostile_inputs.EXTRAS)}, *messages[1:]]


def fuzzed(route: Route, key: bytes, dice: Dice) -> Sent:
    """Return a request with nothing wrong in it, or something, or a few things."""
    sent = good(route, key, dice)
    for change, chance in CHANGES:
        if dice.random() < chance:
            sent = change(sent, dice)
    return sent


# --- Bodies -------------------------------------------------------------------------------------


def change_body(sent: Sent, dice: Dice) -> Sent:
    """Put something wrong into the object or into its bytes, or send other bytes."""
    if not sent.body.startswith(b"{") or dice.random() < 0.05:
        return replace(sent, body=dice.choice(hostile_inputs.BODIES))
    text = change_object(json.loads(sent.body), dice) if dice.random() < 0.85 else None
    body = sent.body if text is None else text.encode("utf-8", "surrogatepass")
    if text is None or dice.random() < 0.1:
        body = change_bytes(body, dice)
    return replace(sent, body=body)


def change_object(body: Json, dice: Dice) -> str:
    """Return the text of an object in which one to three fields are wrong."""
    odds: dict[str, str] = {}
    for _ in range(dice.choice((1, 1, 1, 2, 3))):
        holder, key = dice.choice(list(places(body)) or [(body, "model")])
        mark = f"@@{len(odds)}@@"
        odds[f'"{mark}"'] = odd_json(dice)
        dice.choice(FIELD_CHANGES)(holder, key, mark, dice)
    text = json.dumps(body, ensure_ascii=dice.random() < 0.5)
    for mark, value in odds.items():
        text = text.replace(mark, value)
    return repeat_a_key(text, dice) if dice.random() < 0.05 else text


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Yield each field and item of a value, with its container."""
    inside = value.items() if isinstance(value, dict) else enumerate(value)
    for key, inner in list(inside):
        yield value, key
        if isinstance(inner, dict | list):
            yield from places(inner)


def odd_json(dice: Dice) -> str:
    """Return the text of a value that is rarely valid here, and not always JSON."""
    chance = dice.random()
    if chance < 0.02:
        return nest(dice)
    if chance < 0.3:
        return json.dumps(dice.choice(dice.choice(list(EXAMPLES.values())))[1])
    return dice.choice(hostile_inputs.VALUES if chance < 0.97 else hostile_inputs.LARGE_VALUES)


def nest(dice: Dice) -> str:
    # Just below the parser's limit, code that walks the result recursively runs out of stack.
    depth = dice.choice((10, 63, 64, 65, 300, dice.randint(850, 1000), 5_000, 50_000))
    start, end = dice.choice((("[", "]"), ('{"a":', "}"), ('[{"type":"text","content":', "}]")))
    return start * depth + "1" + end * depth


def replace_field(holder: Any, key: Any, mark: str, dice: Dice) -> None:
    holder[key] = mark


def wrap_field(holder: Any, key: Any, mark: str, dice: Dice) -> None:
    inner = holder[key] if isinstance(holder, list) else holder.get(key)
    holder[key] = dice.choice(([inner], {"a": inner}, [inner] * 40))


def remove_field(holder: Any, key: Any, mark: str, dice: Dice) -> None:
    holder.pop(key, None) if isinstance(holder, dict) else holder.pop(key)


def rename_field(holder: Any, key: Any, mark: str, dice: Dice) -> None:
    if isinstance(holder, dict):
        holder[dice.choice(hostile_inputs.SPELLINGS)(key)] = holder.pop(key, None)


def respell_field(holder: Any, key: Any, mark: str, dice: Dice) -> None:
    """Set a field a second time, under a name that only looks the same."""
    if isinstance(holder, dict):
        holder[dice.choice(hostile_inputs.SPELLINGS)(key)] = mark


def add_field(holder: Any, key: Any, mark: str, dice: Dice) -> None:
    if isinstance(holder, dict):
        holder[dice.choice(hostile_inputs.KEYS)] = mark
    else:
        holder.insert(key, mark)


FieldChange = Callable[[Any, Any, str, Dice], None]
FIELD_CHANGES: tuple[FieldChange, ...] = (
    *(replace_field,) * 5,
    *(add_field,) * 4,
    *(remove_field, rename_field, respell_field, wrap_field),
)


def repeat_a_key(text: str, dice: Dice) -> str:
    """Write a field twice into an object of a text."""
    starts = [at + 1 for at, letter in enumerate(text) if letter == "{"] or [0]
    at = dice.choice(starts)
    name = dice.choice(("model", "role", "seed", "type", "options", "\\u006dodel"))
    return f'{text[:at]}"{name}": "mistral", {text[at:]}'


def change_bytes(body: bytes, dice: Dice) -> bytes:
    return dice.choice(BYTE_CHANGES)(body, dice)


def flip(body: bytes, dice: Dice) -> bytes:
    """Change some bits, anywhere."""
    found = bytearray(body or b"\0")
    for _ in range(dice.choice((1, 1, 2, 8))):
        found[dice.randrange(len(found))] ^= 1 << dice.randrange(8)
    return bytes(found)


def cut(body: bytes, dice: Dice) -> bytes:
    return body[: dice.randrange(len(body) + 1)]


def insert(body: bytes, dice: Dice) -> bytes:
    at = dice.randrange(len(body) + 1)
    return body[:at] + dice.choice(hostile_inputs.BYTES) + body[at:]


def append(body: bytes, dice: Dice) -> bytes:
    return body + dice.choice((body, b"\n" + body, b"}", b"garbage", b"\0", b" " * 1000, b","))


def encode(body: bytes, dice: Dice) -> bytes:
    text = body.decode("utf-8", "replace").replace("hello", "héllo")
    return text.encode(dice.choice(hostile_inputs.ENCODINGS), "replace")


BYTE_CHANGES: tuple[Callable[[bytes, Dice], bytes], ...] = (flip, cut, insert, append, encode)


# --- Headers ------------------------------------------------------------------------------------


def change_headers(sent: Sent, dice: Dice) -> Sent:
    """Add headers with unusual values, instead of good ones or beside them."""
    headers = list(sent.headers)
    for _ in range(dice.choice((1, 1, 2, 3))):
        name = dice.choice(list(hostile_inputs.HEADERS))
        value = dice.choice(hostile_inputs.HEADERS[name])
        if dice.random() < 0.8:
            headers = [header for header in headers if header[0].lower() != name.lower()]
        headers.append((name, value))
    return replace(sent, headers=tuple(headers))


def change_credential(sent: Sent, dice: Dice) -> Sent:
    """Carry another credential than the good one, or the good one in an unusual way."""
    secret = sent.headers[1][1].rpartition(b" ")[2]
    name, value = dice.choice(hostile_inputs.CREDENTIALS)
    carried = (name, value.replace(b"SECRET", secret))
    rest = sent.headers[2:] if dice.random() < 0.8 else sent.headers[1:]
    return replace(sent, headers=(sent.headers[0], carried, *rest))


# --- Addresses and methods ----------------------------------------------------------------------


# A request line ends at these, so they are percent-encoded in it.
UNWRITABLE = re.compile(rb"[\x00-\x20\x7f]")


def change_method(sent: Sent, dice: Dice) -> Sent:
    return replace(sent, method=dice.choice(hostile_inputs.METHODS))


def change_target(sent: Sent, dice: Dice) -> Sent:
    path = sent.target
    if sent.route.names_a_model and dice.random() < 0.7:
        safe = dice.choice(("", "/:", string.punctuation))
        model = quote(dice.choice(hostile_inputs.NAMES), safe=safe, errors="surrogatepass")
        path = sent.route.path.replace("<path:model>", model).encode()
    else:
        path = dice.choice(hostile_inputs.PATHS)(path, dice)
    return replace(sent, target=UNWRITABLE.sub(lambda found: b"%%%02x" % found[0][0], path))


def add_query(sent: Sent, dice: Dice) -> Sent:
    """Ask for periods, pages and formats that do not exist, or with malformed values."""
    if dice.random() < 0.1:
        return replace(sent, target=sent.target + b"?" + dice.choice(hostile_inputs.QUERIES))
    pairs = [
        f"{quote(dice.choice(hostile_inputs.PARAMETERS))}={dice.choice(hostile_inputs.PARAMETER_VALUES)}"
        for _ in range(dice.choice((1, 1, 2, 3)))
    ]
    return replace(sent, target=sent.target + b"?" + "&".join(pairs).encode())


def change_query(sent: Sent, dice: Dice) -> Sent:
    # Routes that read a query are requested more often.
    return add_query(sent, dice) if "usage" in sent.route.path or dice.random() < 0.2 else sent


Change = Callable[[Sent, Dice], Sent]
# The credential first: the good one is there.
CHANGES: tuple[tuple[Change, float], ...] = (
    (change_credential, 0.12),
    (change_body, 0.75),
    (change_headers, 0.2),
    (change_target, 0.1),
    (change_query, 0.7),
    (change_method, 0.06),
)
