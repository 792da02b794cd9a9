"""Whole answers as bytes, for requests that no thread, or no parser, hands to Django."""

import json
from http import HTTPStatus

from django.conf import settings

from gateway.dialects import dialect_of
from gateway.errors import BadRequest, GatewayBusy, GatewayError
from gateway.http.request_ids import new_request_id


def answer_when_full(head: bytes) -> bytes:
    """Return the response to the head of a request, which may be incomplete: 503, and 200 for
    /healthz.

    A full process is alive. A supervisor that restarted it would end all its responses.
    """
    words = head.split(b"\r\n", 1)[0].split(b" ")
    path = words[1].partition(b"?")[0].decode("latin-1") if len(words) == 3 else "/"
    if path == "/healthz":
        return _http(HTTPStatus.OK.value, HTTPStatus.OK.phrase, _health(), [])
    return _error(GatewayBusy(), path, GatewayBusy.status, "Service Unavailable")


def _health() -> bytes:
    return json.dumps({"status": "alive", "version": settings.VERSION}).encode()


def broken_request(status: int, reason: str) -> bytes:
    """Answer what is no HTTP."""
    error = GatewayError() if status == 500 else BadRequest("The request is not valid HTTP.")
    return _error(error, "/", status, reason)


def _error(error: GatewayError, path: str, status: int, reason: str) -> bytes:
    request_id = str(new_request_id())
    headers = [f"x-request-id: {request_id}"]
    if error.retry_after is not None:
        headers.append(f"Retry-After: {error.retry_after}")
    return _http(status, reason, dialect_of(path).error(error, request_id), headers)


def _http(status: int, reason: str, body: bytes, headers: list[str]) -> bytes:
    lines = [
        f"HTTP/1.1 {status} {reason}",
        "Content-Type: application/json",
        f"Content-Length: {len(body)}",
        "Connection: close",
        *headers,
    ]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body
