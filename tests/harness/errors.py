"""Every error of the gateway."""

import json
from collections.abc import Iterator
from typing import Any

from gateway.errors import GatewayError

SECRET = "/srv/models/blobs/sha256-0123 at 10.0.0.5"


def every_kind(kind: type[GatewayError] = GatewayError) -> Iterator[type[GatewayError]]:
    yield kind
    for narrower in kind.__subclasses__():
        yield from every_kind(narrower)


KINDS = sorted(set(every_kind()), key=lambda kind: kind.__name__)


def is_clean(answer: Any, status: int) -> bool:
    """Tell whether an answer is an error as every client of ours reads it."""
    body = json.loads(answer.content)
    return (
        answer.status_code == status
        and answer["Content-Type"] == "application/json"
        and set(body) == {"error", "code", "request_id"}
        and all(isinstance(value, str) and value for value in body.values())
        and answer["x-request-id"] == body["request_id"]
    )
