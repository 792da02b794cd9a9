"""The client families of OpenAI's API, one for each of its addresses."""

from collections.abc import Callable
from typing import Any

from gateway.dialects.base import Renderer
from gateway.dialects.fields import model_of, wants_stream
from gateway.dialects.openai import parsing, responses_parsing
from gateway.dialects.openai.errors import error_body
from gateway.dialects.openai.renderers import ChatRenderer, CompletionRenderer, EmbeddingsRenderer
from gateway.dialects.openai.responses_renderers import ResponseRenderer
from gateway.errors import GatewayError
from gateway.metering import Operation
from gateway.validation.inference_request import Prompt
from gateway.validation.rules import reject_lookalikes

Read = Callable[[dict[str, Any]], dict[str, Any]]


class OpenAIDialect:
    """An address of OpenAI's: how its requests are read, and who writes its answers."""

    def __init__(
        self, fields: Read, wants: Read, render: Callable[[Prompt, str], Renderer]
    ) -> None:
        self._fields = fields
        self._wants = wants
        self._render = render

    def parse(self, operation: Operation, body: dict[str, Any]) -> Prompt:
        reject_lookalikes(body)
        stream = wants_stream(body, default=False) and operation is not Operation.EMBED
        return Prompt(operation, model_of(body), stream, self._fields(body), self._wants(body))

    def renderer(self, prompt: Prompt, request_id: str) -> Renderer:
        return self._render(prompt, request_id)

    def error(self, error: GatewayError, request_id: str) -> bytes:
        return error_body(error, request_id)


CHAT = OpenAIDialect(parsing.chat_fields, parsing.answer_wants, ChatRenderer)
COMPLETIONS = OpenAIDialect(parsing.completion_fields, parsing.answer_wants, CompletionRenderer)
EMBEDDINGS = OpenAIDialect(parsing.embedding_fields, parsing.embedding_wants, EmbeddingsRenderer)
RESPONSES = OpenAIDialect(
    responses_parsing.response_fields, responses_parsing.response_wants, ResponseRenderer
)
