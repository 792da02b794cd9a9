"""Every error that a client can get. Status, code and headers belong to the class.

GatewayError 500
├── BadRequest 400
│   ├── Unauthenticated 401 ── KeyRevoked
│   ├── Forbidden 403
│   ├── NotFound 404 ── ModelNotFound
│   ├── MethodNotAllowed 405
│   ├── BodyTimeout 408
│   ├── LengthRequired 411
│   └── TooLarge 413
├── metering.Refused 402, 404, 409, 422, 429
├── AnswerTooLong 504         by our limit; the model server was not silent
├── ClientDisconnected 499    not read by anybody; it ends the work
├── DatabaseDown 503
├── GatewayBusy 503           no thread or memory is free
├── GatewayStopping 503
└── UpstreamError 502
    ├── RegistryUnreachable 502  while the model server pulls a model
    ├── UpstreamBroke 502     ended without its last line, or with an error line
    ├── UpstreamBusy 503
    ├── UpstreamDown 503      cannot be reached
    └── UpstreamStalled 504   silent for too long, before its first line or after
"""

from typing import ClassVar


class GatewayError(Exception):
    """An error with the status, code and headers of its response. The message is public."""

    status: ClassVar[int] = 500
    code: ClassVar[str] = "internal_error"
    message = "Something went wrong on our side. Quote the request id when you report it."
    # Seconds after which a client may try again; None where waiting does not help.
    retry_after: int | None = None
    # What the log gets besides the message.
    cause = ""
    # SDKs repeat some statuses by themselves. True where that is useless or costs money.
    never_retry: ClassVar[bool] = False

    def __init__(self, message: str | None = None, **details: str) -> None:
        self.message = message or self.message
        # Facts for programs; each family renders them beside its code.
        self.details = details
        super().__init__(self.message)


class BadRequest(GatewayError):
    status, code = 400, "invalid_request"
    message = "The request is not valid."


class Unauthenticated(BadRequest):
    status, code = 401, "invalid_api_key"


class KeyRevoked(Unauthenticated):
    code = "key_revoked"
    message = "The API key was revoked or its account suspended before the answer ended."


class Forbidden(BadRequest):
    status, code = 403, "forbidden"


class NotFound(BadRequest):
    status, code = 404, "not_found"
    message = "There is nothing at this address."


class ModelNotFound(NotFound):
    code = "model_not_found"

    def __init__(self, model: str) -> None:
        super().__init__(f"model '{model}' not found")


class MethodNotAllowed(BadRequest):
    status, code = 405, "method_not_allowed"


class BodyTimeout(BadRequest):
    status, code = 408, "body_timeout"
    message = "The request's body did not arrive in time."


class LengthRequired(BadRequest):
    status, code = 411, "length_required"
    message = "Send the body with a Content-Length."


class TooLarge(BadRequest):
    status, code = 413, "request_too_large"


class AnswerTooLong(GatewayError):
    # The tokens produced are billed; an SDK would repeat the request and pay again.
    status, code, never_retry = 504, "answer_too_long", True
    message = (
        "The answer took longer than this gateway lets an answer take. "
        "What was produced until then is charged."
    )


class ClientDisconnected(GatewayError):
    status, code = 499, "client_left"
    message = "The client closed the connection."


class GatewayBusy(GatewayError):
    status, code, retry_after = 503, "gateway_busy", 5
    message = "The gateway is at its limit. Try again shortly."


class GatewayStopping(GatewayError):
    status, code, retry_after = 503, "gateway_stopping", 5
    message = "The gateway is being restarted. Ask again."


class UpstreamError(GatewayError):
    status, code = 502, "upstream_error"
    message = "The model server failed to answer."


class RegistryUnreachable(UpstreamError):
    code = "registry_unreachable"
    message = "The registry could not be reached."


class UpstreamBroke(UpstreamError):
    code = "upstream_broke"
    message = "The model server broke off its answer."


class UpstreamBusy(UpstreamError):
    status, code, retry_after = 503, "upstream_busy", 5
    message = "The model server is busy. Try again shortly."


class UpstreamDown(UpstreamError):
    status, code, retry_after = 503, "upstream_down", 5
    message = "The model server cannot be reached."


class UpstreamStalled(UpstreamError):
    status, code = 504, "upstream_stalled"
    message = "The model server did not answer in time."


class DatabaseDown(GatewayError):
    status, code, retry_after = 503, "database_unavailable", 2
    message = "The gateway cannot reach its database. Try again shortly."
