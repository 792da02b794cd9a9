"""Read requests of the Responses API into native fields, as far as nothing is kept here. Pure."""

from collections.abc import Callable
from typing import Any

from gateway.dialects.openai.messages import answered, content, message, tool_call
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
from gateway.dialects.openai.tools import response_tools
from gateway.errors import BadRequest
from gateway.validation.inference_request import ResponseOptions

NOTHING_IS_KEPT = "nothing is kept here; send the whole conversation in 'input'."
REFUSED: dict[str, tuple[Asked, str]] = {
    "previous_response_id": (always, f"'previous_response_id' is not supported: {NOTHING_IS_KEPT}"),
    "conversation": (always, f"'conversation' is not supported: {NOTHING_IS_KEPT}"),
    "store": (bool, "'store' must be false: nothing is kept here."),
    "background": (bool, "'background' is not supported."),
    "prompt": (always, "'prompt' is not supported: no templates are kept here."),
    "moderation": (bool, "'moderation' is not supported."),
}
# The fields of the request that a response repeats, with their defaults.
ECHOED: dict[str, Any] = {
    "instructions": None,
    "max_output_tokens": None,
    "metadata": {},
    "reasoning": {"effort": None, "summary": None},
    "temperature": None,
    "text": {"format": {"type": "text"}},
    "tool_choice": "auto",
    "tools": [],
    "top_logprobs": 0,
    "top_p": None,
    "truncation": "auto",
    "user": None,
}
Messages = list[dict[str, Any]]


def response_fields(body: dict[str, Any]) -> dict[str, Any]:
    """Return the native fields of a response request; raise BadRequest."""
    reject_unsupported(body, REFUSED)
    return given(
        {
            "messages": input_messages(body.get("input"), body.get("instructions")),
            "tools": response_tools(body.get("tools"), body.get("tool_choice")),
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
    return ResponseOptions(echo=echo)


def wants_logprobs(body: dict[str, Any]) -> bool:
    include = body.get("include")
    included = isinstance(include, list) and "message.output_text.logprobs" in include
    return included or body.get("top_logprobs") is not None


def text_format(body: dict[str, Any]) -> Any:
    asked = nested(body, "text", "format")
    schema = nested({"text.format": asked}, "text.format", "schema")
    return native_format(asked and asked.get("type"), schema, "text.format")


def truncate(asked: Any) -> bool | None:
    """Tell whether a prompt that is too long is cut, where the client says so."""
    if asked not in (None, "auto", "disabled"):
        raise BadRequest("'truncation' must be auto or disabled.")
    return None if asked is None else bool(asked == "auto")


# --- Input ----------------------------------------------------------------------------------------


def input_messages(asked: Any, instructions: Any) -> Messages:
    """Return native messages for instructions and input, which is a text or a list of items."""
    if not isinstance(instructions, str | None):
        raise BadRequest("'instructions' must be a text.")
    if not asked or not isinstance(asked, str | list):
        raise BadRequest("'input' must be a text or a list of items.")
    found: Messages = [{"role": "system", "content": instructions}] if instructions else []
    items = [{"role": "user", "content": asked}] if isinstance(asked, str) else asked
    names: dict[str, str] = {}
    for i, item in enumerate(items):
        add_item(found, item, f"input[{i}]", names)
    if not found:
        raise BadRequest("'input' holds nothing to answer.")
    return found


def add_item(found: Messages, item: Any, where: str, names: dict[str, str]) -> None:
    if not isinstance(item, dict):
        raise BadRequest(f"'{where}' must be an object.")
    kind = item.get("type", "message")
    if not isinstance(kind, str) or kind not in ITEMS:
        raise BadRequest(f"'{where}' must be of type {', '.join(ITEMS)}; others are not supported.")
    ITEMS[kind](found, item, where, names)


def add_message(found: Messages, item: dict[str, Any], where: str, names: dict[str, str]) -> None:
    said = {"role": item.get("role"), "content": item.get("content")}
    found.append(message(said, where, names))


def add_call(found: Messages, item: dict[str, Any], where: str, names: dict[str, str]) -> None:
    """Add a call to what the assistant just said: native messages hold both in one."""
    call = tool_call(item.get("call_id"), item, where, names)
    if not found or found[-1]["role"] != "assistant":
        found.append({"role": "assistant", "content": ""})
    found[-1].setdefault("tool_calls", []).append(call)


def add_result(found: Messages, item: dict[str, Any], where: str, names: dict[str, str]) -> None:
    output = content(item.get("output"), f"{where}.output")
    found.append({"role": "tool", **output, **answered(item.get("call_id"), names)})


def add_nothing(found: Messages, item: dict[str, Any], where: str, names: dict[str, str]) -> None:
    """Leave out what a model thought before: it is not asked to read it again."""


ITEMS: dict[str, Callable[[Messages, dict[str, Any], str, dict[str, str]], None]] = {
    "message": add_message,
    "function_call": add_call,
    "function_call_output": add_result,
    "reasoning": add_nothing,
}
