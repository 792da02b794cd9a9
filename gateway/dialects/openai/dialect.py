"""The client families of OpenAI's API, one for each of its addresses."""

from collections.abc import Callable
from typing import Any

from gateway.dialects.base import Renderer
from gateway.dialects.ollama import model_of, wants_stream
from gateway.dialects.openai import requests
from gateway.dialects.openai.answers import ChatRenderer, CompletionRenderer, EmbeddingsRenderer
from gateway.dialects.openai.errors import error_body
from gateway.errors import GatewayError
from gateway.policy import refuse_lookalikes
from gateway.prompt import Operation, Prompt


class OpenAIDialect:
    """An address of OpenAI's: how its requests are read, and who writes its answers."""

    def __init__(
        self,
        fields: Callable[[dict[str, Any]], dict[str, Any]],
        render: Callable[[Prompt, str], Renderer],
    ) -> None:
        self._fields = fields
        self._render = render

    def parse(self, operation: Operation, body: dict[str, Any]) -> Prompt:
        refuse_lookalikes(body)
        wants = {"include_usage": requests.include_usage(body)}
        if operation is Operation.EMBED:
            wants["base64"] = requests.wants_base64(body)
        stream = wants_stream(body, default=False) and operation is not Operation.EMBED
        return Prompt(operation, model_of(body), stream, self._fields(body), wants)

    def renderer(self, prompt: Prompt, request_id: str) -> Renderer:
        return self._render(prompt, request_id)

    def error(self, error: GatewayError, request_id: str) -> bytes:
        return error_body(error, request_id)


CHAT = OpenAIDialect(requests.chat_fields, ChatRenderer)
COMPLETIONS = OpenAIDialect(requests.completion_fields, CompletionRenderer)
EMBEDDINGS = OpenAIDialect(requests.embedding_fields, EmbeddingsRenderer)
