"""Read requests of the Responses API into native fields, as far as nothing is kept here. Pure."""

from typing import Any

from gateway.dialects.openai import tools
from gateway.dialects.openai.parsing import (
    Asked,
    always,
    effort,
    given,
    native_format,
    nested,
    options,
    reject_unsupported,
)
from gateway.dialects.openai.responses_input import input_messages
from gateway.errors import BadRequest
from gateway.validation.inference_request import ResponseOptions

NOTHING_IS_KEPT = "nothing is stored here; send the whole conversation in 'input'."
REFUSED: dict[str, tuple[Asked, str]] = {
    "previous_response_id": (always, f"'previous_response_id' is not supported: {NOTHING_IS_KEPT}"),
    "conversation": (always, f"'conversation' is not supported: {NOTHING_IS_KEPT}"),
    "store": (bool, "Nothing is stored here. Set 'store' to false in your client."),
    "background": (bool, "'background' is not supported."),
    "prompt": (always, "'prompt' is not supported: no templates are stored here."),
    "moderation": (bool, "'moderation' is not supported."),
}
# The fields of the request that a response repeats, with their defaults.
ECHOED: dict[str, Any] = {
    "frequency_penalty": 0.0,
    "instructions": None,
    "max_output_tokens": None,
    "max_tool_calls": None,
    "metadata": {},
    "parallel_tool_calls": True,
    "presence_penalty": 0.0,
    "prompt_cache_key": None,
    "reasoning": {"effort": None, "summary": None},
    "safety_identifier": None,
    "service_tier": "default",
    "temperature": 1.0,
    "text": {"format": {"type": "text"}},
    "tool_choice": "auto",
    "tools": [],
    "top_logprobs": 0,
    "top_p": 1.0,
    "truncation": "auto",
}
# What a function of the request has in the response, even where the request left it out.
FUNCTION: dict[str, Any] = {"description": None, "parameters": None, "strict": None}


def response_fields(body: dict[str, Any]) -> dict[str, Any]:
    """Return the native fields of a response request; raise BadRequest."""
    reject_unsupported(body, REFUSED)
    return given(
        {
            "messages": input_messages(body.get("input"), body.get("instructions")),
            "tools": tools.native_tools(body),
            "format": text_format(body),
            "think": effort(nested(body, "reasoning", "effort"), "reasoning.effort"),
            "truncate": truncate(body.get("truncation")),
            "logprobs": wants_logprobs(body) or None,
            "top_logprobs": body.get("top_logprobs"),
            "options": options(body),
        }
    )


def response_options(body: dict[str, Any]) -> ResponseOptions:
    """Return the fields of the request that the response repeats."""
    set_fields = given(body)
    echo = {name: set_fields.get(name, default) for name, default in ECHOED.items()}
    echo["tools"] = [echoed_tool(tool) for tool in echo["tools"]]
    if "user" in set_fields:
        echo["user"] = set_fields["user"]
    return ResponseOptions(
        echo=echo,
        encrypted_reasoning="reasoning.encrypted_content" in included(body),
        tools=tools.client_tools(body),
        forced=tools.forced_tools(body),
    )


def echoed_tool(tool: dict[str, Any]) -> dict[str, Any]:
    return FUNCTION | tool if tool.get("type") == "function" else tool


def wants_logprobs(body: dict[str, Any]) -> bool:
    is_included = "message.output_text.logprobs" in included(body)
    return is_included or body.get("top_logprobs") is not None


def included(body: dict[str, Any]) -> list[Any]:
    include = body.get("include")
    return include if isinstance(include, list) else []


def text_format(body: dict[str, Any]) -> Any:
    asked = nested(body, "text", "format")
    schema = nested({"text.format": asked}, "text.format", "schema")
    return native_format(asked and asked.get("type"), schema, "text.format")


def truncate(asked: Any) -> bool | None:
    """Tell whether a prompt that is too long is cut, where the client says so."""
    if asked not in (None, "auto", "disabled"):
        raise BadRequest("'truncation' must be auto or disabled.")
    return None if asked is None else bool(asked == "auto")
