"""Read a request's body into one JSON object, or say why not.

Ollama decodes JSON with Go's rules: keys match without regard to case, the last one wins. What
one parser sees and another does not is how limits are talked past, so a body with a repeated key
is refused here, and `policy.py` refuses keys that only look like known ones.
"""

import json
import re
from typing import Any

from django.conf import settings
from django.http import HttpRequest, UnreadablePostError

from gateway.errors import BadRequest, BodyTimeout, GatewayError, LengthRequired, TooLarge

CHUNK_BYTES = 64 * 1024
LENGTH = re.compile(r"[0-9]{1,18}")


def read_object(request: HttpRequest) -> dict[str, Any]:
    """Return the body's JSON object. The media type is ignored: plain `curl -d` must work.

    Raises BadRequest, TooLarge, BodyTimeout or LengthRequired.
    """
    if request.META.get("HTTP_CONTENT_ENCODING", "identity") != "identity":
        raise BadRequest("Compressed request bodies are not supported.")
    return parse_object(read_body(request, settings.MAX_BODY_BYTES))


def read_body(request: HttpRequest, limit: int) -> bytes:
    """Return the raw body, also of a chunked request, which Django itself would read as empty."""
    chunked = bool(request.META.get("HTTP_TRANSFER_ENCODING"))
    length = declared_length(request.META.get("CONTENT_LENGTH") or "", limit)
    if length is None and not chunked:
        raise LengthRequired()
    body = _read_or_say_why(request.META["wsgi.input"] if chunked else request, limit)
    if not chunked and len(body) < (length or 0):
        raise BadRequest("The body is shorter than its Content-Length.")
    return body


def declared_length(header: str, limit: int) -> int | None:
    """Return the Content-Length in bytes, None without one; raise BadRequest or TooLarge."""
    if not header:
        return None
    if not LENGTH.fullmatch(header):
        raise BadRequest("Content-Length is not a number of bytes.")
    if int(header) > limit:
        raise _too_large(limit)
    return int(header)


def _read_or_say_why(source: Any, limit: int) -> bytes:
    try:
        return _read(source, limit)
    except GatewayError:
        raise
    except (UnreadablePostError, OSError) as error:
        raise BodyTimeout() from error
    except Exception as error:  # Each server has its own for chunks that break the rules.
        raise BadRequest("The body's chunks are malformed.") from error


def _read(source: Any, limit: int) -> bytes:
    parts: list[bytes] = []
    size = 0
    while part := source.read(min(CHUNK_BYTES, limit + 1 - size)):
        parts.append(part)
        size += len(part)
        if size > limit:
            raise _too_large(limit)
    return b"".join(parts)


def _too_large(limit: int) -> TooLarge:
    return TooLarge(f"The body is larger than {limit} bytes.")


def parse_object(body: bytes) -> dict[str, Any]:
    """Return the one JSON object a body holds; raise BadRequest."""
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
