"""How OpenAI's clients are told of an error: type and code choose their exception class."""

import json
from typing import Any

from gateway.errors import GatewayError

TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "insufficient_quota",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
}


def error_object(error: GatewayError, request_id: str) -> dict[str, Any]:
    """Return `{"error": {message, type, param, code}}`, with the request's id beside."""
    fallback = "invalid_request_error" if error.status < 500 else "api_error"
    return {
        "error": {
            "message": error.message,
            "type": TYPES.get(error.status, fallback),
            "param": None,
            "code": error.code,
        },
        "request_id": request_id,
    }


def error_body(error: GatewayError, request_id: str) -> bytes:
    return json.dumps(error_object(error, request_id)).encode()
