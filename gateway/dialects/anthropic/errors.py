"""How Anthropic's clients are told of an error: the status chooses their exception class."""

import json
from typing import Any

from gateway.errors import GatewayError

TYPES = {
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
    529: "overloaded_error",
}


def error_object(error: GatewayError, request_id: str) -> dict[str, Any]:
    """Return `{"type": "error", "error": {type, message}}`; our code is where clients look for
    one, in `details`."""
    fallback = "invalid_request_error" if error.status < 500 else "api_error"
    return {
        "type": "error",
        "error": {
            "type": TYPES.get(error.status, fallback),
            "message": error.message,
            "details": {"error_code": error.code, **error.details},
        },
        "request_id": request_id,
    }


def error_body(error: GatewayError, request_id: str) -> bytes:
    return json.dumps(error_object(error, request_id)).encode()
