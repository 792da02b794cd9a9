"""Read OpenAI's requests into native fields. What cannot be honoured is refused by name. Pure."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from gateway.dialects.openai import tools
from gateway.dialects.openai.messages import messages
from gateway.errors import BadRequest
from gateway.validation.inference_request import ResponseOptions

EFFORTS: dict[str, bool | str] = {
    "none": False,
    "minimal": "low",
    "low": "low",
    "medium": "medium",
    "high": "high",
    "xhigh": "max",
    "max": "max",
}
SAMPLING = ("temperature", "top_p", "seed", "presence_penalty", "frequency_penalty", "stop")


def chat_fields(body: dict[str, Any]) -> dict[str, Any]:
    """Return the native fields of a chat completion request; raise BadRequest."""
    reject_unsupported(body)
    fields: dict[str, Any] = {"messages": messages(body.get("messages"))}
    fields["tools"] = tools.native_tools(body)
    fields["format"] = output_format(body.get("response_format"))
    fields["think"] = effort(body.get("reasoning_effort") or nested(body, "reasoning", "effort"))
    fields["logprobs"] = body.get("logprobs")
    fields["top_logprobs"] = body.get("top_logprobs")
    fields["options"] = options(body)
    return given(fields)


def completion_fields(body: dict[str, Any]) -> dict[str, Any]:
    """Return the native fields of a text completion request; raise BadRequest."""
    reject_unsupported(body)
    fields: dict[str, Any] = {"prompt": single_text(body.get("prompt"))}
    fields["suffix"] = body.get("suffix")
    if (count := body.get("logprobs")) is not None:
        if isinstance(count, bool) or not isinstance(count, int):
            raise BadRequest("'logprobs' must be a whole number.")
        fields["logprobs"], fields["top_logprobs"] = True, count
    fields["options"] = options(body)
    return given(fields)


def embedding_fields(body: dict[str, Any]) -> dict[str, Any]:
    """Return the native fields of an embeddings request; raise BadRequest."""
    texts = body.get("input")
    if isinstance(texts, list) and any(isinstance(item, (int, list)) for item in texts):
        raise BadRequest("'input' must be text; arrays of tokens are not supported.")
    if texts is None or texts in ("", []):
        raise BadRequest("'input' is required.")
    return given({"input": texts, "dimensions": body.get("dimensions")})


def given(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}


def wants_base64(body: dict[str, Any]) -> bool:
    encoding = body.get("encoding_format", "float")
    if encoding not in ("float", "base64", None):
        raise BadRequest("'encoding_format' must be float or base64.")
    return bool(encoding == "base64")


def chat_options(body: dict[str, Any]) -> ResponseOptions:
    """Return how a client wants its chat completion written."""
    return replace(
        stream_options(body), tools=tools.client_tools(body), forced=tools.forced_tools(body)
    )


def stream_options(body: dict[str, Any]) -> ResponseOptions:
    """Return how a client wants its stream written."""
    return ResponseOptions(include_usage=bool(nested(body, "stream_options", "include_usage")))


def encoding_options(body: dict[str, Any]) -> ResponseOptions:
    """Return how a client wants its vectors written."""
    return ResponseOptions(base64=wants_base64(body))


def nested(body: dict[str, Any], name: str, inner: str) -> Any:
    """Return a field of an object in the body, None where there is none."""
    found = body.get(name)
    if found is not None and not isinstance(found, dict):
        raise BadRequest(f"'{name}' must be an object.")
    return (found or {}).get(inner)


# --- Refusals ------------------------------------------------------------------------------------

Asked = Callable[[Any], bool]


def always(_value: Any) -> bool:
    return True


REFUSED: dict[str, tuple[Asked, str]] = {
    "n": (lambda value: value != 1, "'n' must be 1: one answer at a time."),
    "best_of": (lambda value: value != 1, "'best_of' must be 1."),
    "echo": (bool, "'echo' is not supported."),
    "functions": (bool, "'functions' is not supported; use 'tools'."),
    "function_call": (
        lambda value: value not in ("none", "auto"),
        "'function_call' is not supported; use 'tool_choice'.",
    ),
    "logit_bias": (bool, "'logit_bias' is not supported."),
    "moderation": (bool, "'moderation' is not supported."),
    "audio": (always, "'audio' is not supported."),
    "web_search_options": (always, "'web_search_options' is not supported."),
    "modalities": (lambda value: value != ["text"], "'modalities' must be text alone."),
}


def reject_unsupported(
    body: dict[str, Any], refused: dict[str, tuple[Asked, str]] = REFUSED
) -> None:
    """Refuse what would change the answer and cannot be done, rather than drop it silently."""
    for name, (is_asked, message) in refused.items():
        if body.get(name) is not None and is_asked(body[name]):
            raise BadRequest(message)


# --- Options --------------------------------------------------------------------------------------


def options(body: dict[str, Any]) -> dict[str, Any]:
    found = {name: body[name] for name in SAMPLING if body.get(name) is not None}
    for name in ("max_output_tokens", "max_completion_tokens", "max_tokens"):
        if body.get(name) is not None:
            found.setdefault("num_predict", token_limit(body[name], name))
    return found


def token_limit(limit: Any, name: str) -> int:
    if isinstance(limit, bool) or not isinstance(limit, int) or limit < 1:
        raise BadRequest(f"'{name}' must be a whole number of at least 1.")
    return limit


def effort(asked: Any, name: str = "reasoning_effort") -> bool | str | None:
    """Return how hard a model is to think, natively; None leaves it to the model."""
    if asked is None:
        return None
    if not isinstance(asked, str) or asked not in EFFORTS:
        raise BadRequest(f"'{name}' must be one of {', '.join(EFFORTS)}.")
    return EFFORTS[asked]


def output_format(asked: Any) -> Any:
    """Return the native format of `response_format`; raise BadRequest."""
    inner = nested({"response_format": asked}, "response_format", "json_schema")
    schema = inner.get("schema") if isinstance(inner, dict) else None
    return native_format(asked and asked.get("type"), schema, "response_format")


def native_format(kind: Any, schema: Any, name: str) -> Any:
    if kind in (None, "text"):
        return None
    if kind == "json_object":
        return "json"
    if kind == "json_schema" and isinstance(schema, dict):
        return schema
    raise BadRequest(f"'{name}' must be text, json_object or json_schema with a schema.")


def single_text(prompt: Any) -> str:
    if isinstance(prompt, list) and len(prompt) == 1:
        prompt = prompt[0]
    if not isinstance(prompt, str) or not prompt:
        raise BadRequest("'prompt' must be one text; lists and tokens are not supported.")
    return prompt
