"""Read a request's body into one JSON object, or say why not.

Ollama decodes JSON with Go's rules: keys match without regard to case, the last one wins. What
one parser sees and another does not is how limits are talked past, so a body with a repeated key
is refused here, and `policy.py` refuses keys that only look like known ones.
"""

import contextlib
import json
import re
from collections.abc import Callable, Iterator
from typing import Any

from django.conf import settings
from django.http import HttpRequest, UnreadablePostError

from gateway.errors import BadRequest, BodyTimeout, LengthRequired, TooLarge
from gateway.validation import large_bodies
from gateway.validation.large_bodies import LARGE_BYTES

CHUNK_BYTES = 64 * 1024
# Not worth a look before it is parsed.
SMALL_BYTES = 16 * 1024
LENGTH = re.compile(r"[0-9]{1,18}")


def read_object(request: HttpRequest) -> dict[str, Any]:
    """Return the JSON object of a body that is not large. Raises what `reading` raises."""
    with reading(request) as found:
        return found


@contextlib.contextmanager
def reading(
    request: HttpRequest, admit_large: Callable[[], None] | None = None
) -> Iterator[dict[str, Any]]:
    """Read the body's JSON object. The memory of a large one stays reserved while it is checked.

    The media type is ignored: plain `curl -d` must work. `admit_large` is called before a large
    body is read, and raises if it must not be; without it, large bodies are rejected.
    Raises BadRequest, TooLarge, BodyTimeout, LengthRequired or GatewayBusy.
    """
    if request.META.get("HTTP_CONTENT_ENCODING", "identity") != "identity":
        raise BadRequest("Compressed request bodies are not supported.")
    most = settings.MAX_BODY_BYTES if admit_large else min(LARGE_BYTES, settings.MAX_BODY_BYTES)
    body = bytearray()
    with contextlib.ExitStack() as room_taken:

        def admit(size: int) -> None:
            if admit_large:
                admit_large()
            room_taken.enter_context(large_bodies.room.of(size, settings.MAX_BODY_BYTES))

        try:
            read_body(request, body, most, admit)
            found = parse_object(body)
        finally:
            body.clear()  # The traceback of an error would keep it.
        yield found


def read_body(
    request: HttpRequest, body: bytearray, limit: int, admit: Callable[[int], None]
) -> None:
    """Read the raw body, also of a chunked request, which Django itself would read as empty.

    `admit` is called once, before more than LARGE_BYTES are read, with how many are expected.
    """
    chunked = bool(request.META.get("HTTP_TRANSFER_ENCODING"))
    length = declared_length(request.META.get("CONTENT_LENGTH") or "", limit)
    if length is None and not chunked:
        raise LengthRequired()
    source = request.META["wsgi.input"] if chunked else request
    if length is None:
        _read_or_say_why(source, body, min(limit, LARGE_BYTES))
    if limit > LARGE_BYTES < max(length or 0, len(body)):
        admit(length or limit)
    _read_or_say_why(source, body, limit)
    _check_size(body, at_least=0 if chunked else length or 0, at_most=limit)


def _check_size(body: bytearray, *, at_least: int, at_most: int) -> None:
    if len(body) > at_most:
        raise _too_large(at_most)
    if len(body) < at_least:
        raise BadRequest("The body is shorter than its Content-Length.")


def declared_length(header: str, limit: int) -> int | None:
    """Return the Content-Length in bytes, None without one; raise BadRequest or TooLarge."""
    if not header:
        return None
    if not LENGTH.fullmatch(header):
        raise BadRequest("Content-Length is not a number of bytes.")
    if int(header) > limit:
        raise _too_large(limit)
    return int(header)


def _read_or_say_why(source: Any, body: bytearray, limit: int) -> None:
    """Read on until the end, or one byte beyond the limit."""
    try:
        while len(body) <= limit and (part := source.read(min(CHUNK_BYTES, limit + 1 - len(body)))):
            body += part
    except (UnreadablePostError, OSError) as error:
        raise BodyTimeout() from error
    except Exception as error:  # Each server has its own for chunks that break the rules.
        raise BadRequest("The body's chunks are malformed.") from error


def _too_large(limit: int) -> TooLarge:
    return TooLarge(f"The body is larger than {limit} bytes.")


def parse_object(body: bytes | bytearray) -> dict[str, Any]:
    """Return the one JSON object a body holds; raise BadRequest."""
    if len(body) <= SMALL_BYTES:
        return _parse(body)
    large_bodies.check_quotes(body, settings.MAX_JSON_VALUES)
    try:
        most_text = large_bodies.text_limit(settings.MAX_PROMPT_BYTES)
        lifted = large_bodies.Lifted(body, most_text, settings.MAX_IMAGE_BYTES)
    except ValueError as error:
        raise BadRequest(f"The body is not valid JSON: {_reason(error)}.") from None
    if isinstance(body, bytearray):
        body.clear()  # The images are not to be held twice.
    large_bodies.check_values(lifted.rest, settings.MAX_JSON_VALUES)
    return lifted.put_back(_parse(lifted.rest))


def _parse(body: bytes | bytearray) -> dict[str, Any]:
    if not body.strip():
        raise BadRequest("missing request body")
    try:
        value = json.loads(
            body.decode("utf-8"),
            object_pairs_hook=_unique,
            parse_constant=_no_constant,
            parse_float=_finite,
        )
    except UnicodeDecodeError:
        raise BadRequest("The body is not UTF-8.") from None
    except RecursionError:
        raise BadRequest("The body is nested too deeply.") from None
    except ValueError as error:
        raise BadRequest(f"The body is not valid JSON: {_reason(error)}.") from None
    if not isinstance(value, dict):
        raise BadRequest("The body must be a JSON object.")
    return value


def _reason(error: ValueError) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg} at character {error.pos}"
    return "a number is out of range"


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise BadRequest(f"The key {_shown(twice)} stands twice.")
    return found


def _shown(key: str) -> str:
    return json.dumps(key[:60])


def _no_constant(name: str) -> float:
    raise BadRequest(f"{name} is not a JSON number.")


def _finite(text: str) -> float:
    number = float(text)
    if number in (float("inf"), float("-inf")):
        raise BadRequest("A number is out of range.")
    return number
