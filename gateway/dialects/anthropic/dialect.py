"""The client family of Anthropic's API."""

from typing import Any

from gateway.dialects import forced_calls
from gateway.dialects.anthropic import parsing
from gateway.dialects.anthropic.errors import error_body
from gateway.dialects.anthropic.renderers import MessageRenderer
from gateway.dialects.base import Renderer, sdk_retry_headers
from gateway.dialects.fields import model_of, wants_stream
from gateway.errors import GatewayError
from gateway.metering import Operation
from gateway.validation.inference_request import InferenceRequest, ResponseOptions
from gateway.validation.rules import reject_lookalikes


class AnthropicDialect:
    """Requests and answers of `/v1/messages`."""

    def parse(self, operation: Operation, body: dict[str, Any]) -> InferenceRequest:
        reject_lookalikes(body)
        stream = wants_stream(body, default=False)
        payload = parsing.chat_fields(body)
        options = ResponseOptions(forced=parsing.forced_tools(body))
        if options.forced:
            forced_calls.force(payload, options.forced)
        return InferenceRequest(operation, model_of(body), stream, payload, options)

    def renderer(self, request: InferenceRequest, request_id: str) -> Renderer:
        renderer = MessageRenderer(request, request_id)
        forced = request.options.forced
        return forced_calls.ForcedCallRenderer(renderer, forced) if forced else renderer

    def error(self, error: GatewayError, request_id: str) -> bytes:
        return error_body(error, request_id)

    def headers(self, status: int, request_id: str, seconds: float) -> dict[str, str]:
        return {"request-id": request_id, **sdk_retry_headers(status)}
