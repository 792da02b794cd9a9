"""How OpenAI's clients are told of an error: type and code choose their exception class."""

import json
import re
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
# Natively they stand among the options; this family has them beside the rest.
OPTIONS = "'options."
PARAM = re.compile(r"'([a-z_.\[\]0-9]+)'")


def error_fields(error: GatewayError) -> dict[str, Any]:
    """Return `message`, `type`, `param` and `code`."""
    fallback = "invalid_request_error" if error.status < 500 else "api_error"
    message = error.message.replace(OPTIONS, "'")
    # A message about a field of the request begins with its name.
    param = PARAM.match(message) if error.status == 400 else None
    return {
        "message": message,
        "type": TYPES.get(error.status, fallback),
        "param": param and param[1],
        "code": error.code,
        **error.details,
    }


def error_object(error: GatewayError, request_id: str) -> dict[str, Any]:
    """Return `{"error": {message, type, param, code}}`, with the request's id beside."""
    return {"error": error_fields(error), "request_id": request_id}


def error_body(error: GatewayError, request_id: str) -> bytes:
    return json.dumps(error_object(error, request_id)).encode()
