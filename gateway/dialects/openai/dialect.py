"""The client family of OpenAI's API: one dialect for each route."""

from collections.abc import Callable
from typing import Any

from gateway.dialects import forced_calls
from gateway.dialects.base import Renderer, sdk_retry_headers
from gateway.dialects.fields import model_of, wants_stream
from gateway.dialects.openai import parsing, responses_parsing
from gateway.dialects.openai.errors import error_body
from gateway.dialects.openai.renderers import ChatRenderer, CompletionRenderer, EmbeddingsRenderer
from gateway.dialects.openai.responses_renderers import ResponseRenderer
from gateway.errors import GatewayError
from gateway.metering import Operation
from gateway.validation.inference_request import InferenceRequest, ResponseOptions
from gateway.validation.rules import reject_lookalikes

Body = dict[str, Any]


class OpenAIDialect:
    """One route of OpenAI's: what reads its payload and its options, and what writes its
    responses."""

    def __init__(
        self,
        payload: Callable[[Body], dict[str, Any]],
        options: Callable[[Body], ResponseOptions],
        render: Callable[[InferenceRequest, str], Renderer],
    ) -> None:
        self._payload = payload
        self._options = options
        self._render = render

    def parse(self, operation: Operation, body: dict[str, Any]) -> InferenceRequest:
        reject_lookalikes(body)
        stream = wants_stream(body, default=False) and operation is not Operation.EMBED
        payload, options = self._payload(body), self._options(body)
        if options.forced:
            forced_calls.force(payload, options.forced)
        return InferenceRequest(operation, model_of(body), stream, payload, options)

    def renderer(self, request: InferenceRequest, request_id: str) -> Renderer:
        renderer = self._render(request, request_id)
        forced = request.options.forced
        return forced_calls.ForcedCallRenderer(renderer, forced) if forced else renderer

    def error(self, error: GatewayError, request_id: str) -> bytes:
        return error_body(error, request_id)

    def headers(self, status: int, request_id: str, seconds: float) -> dict[str, str]:
        return {"openai-processing-ms": str(round(seconds * 1000)), **sdk_retry_headers(status)}


CHAT = OpenAIDialect(parsing.chat_fields, parsing.chat_options, ChatRenderer)
COMPLETIONS = OpenAIDialect(parsing.completion_fields, parsing.stream_options, CompletionRenderer)
EMBEDDINGS = OpenAIDialect(parsing.embedding_fields, parsing.encoding_options, EmbeddingsRenderer)
RESPONSES = OpenAIDialect(
    responses_parsing.response_fields, responses_parsing.response_options, ResponseRenderer
)
