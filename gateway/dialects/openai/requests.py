"""Read OpenAI's requests into native fields. What cannot be honoured is refused by name. Pure."""

import json
from collections.abc import Callable
from typing import Any

from gateway.errors import BadRequest

ROLES = {"developer": "system", "function": "tool"}
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
    refuse_what_cannot_be_honoured(body)
    fields: dict[str, Any] = {"messages": messages(body.get("messages"))}
    fields["tools"] = tools(body.get("tools"), body.get("tool_choice"))
    fields["format"] = output_format(body.get("response_format"))
    fields["think"] = effort(body.get("reasoning_effort"))
    fields["logprobs"] = body.get("logprobs")
    fields["top_logprobs"] = body.get("top_logprobs")
    fields["options"] = options(body)
    return {name: value for name, value in fields.items() if value is not None}


def completion_fields(body: dict[str, Any]) -> dict[str, Any]:
    """Return the native fields of a text completion request; raise BadRequest."""
    refuse_what_cannot_be_honoured(body)
    fields: dict[str, Any] = {"prompt": single_text(body.get("prompt"))}
    fields["suffix"] = body.get("suffix")
    count = body.get("logprobs")
    if isinstance(count, int) and not isinstance(count, bool):
        fields["logprobs"], fields["top_logprobs"] = True, count
    fields["options"] = options(body)
    return {name: value for name, value in fields.items() if value is not None}


def embedding_fields(body: dict[str, Any]) -> dict[str, Any]:
    """Return the native fields of an embeddings request; raise BadRequest."""
    texts = body.get("input")
    if isinstance(texts, list) and any(isinstance(item, (int, list)) for item in texts):
        raise BadRequest("'input' must be text; arrays of tokens are not supported.")
    if texts is None or texts in ("", []):
        raise BadRequest("'input' is required.")
    fields = {"input": texts, "dimensions": body.get("dimensions")}
    return {name: value for name, value in fields.items() if value is not None}


def wants_base64(body: dict[str, Any]) -> bool:
    encoding = body.get("encoding_format", "float")
    if encoding not in ("float", "base64", None):
        raise BadRequest("'encoding_format' must be float or base64.")
    return bool(encoding == "base64")


def include_usage(body: dict[str, Any]) -> bool:
    asked = body.get("stream_options")
    if asked is not None and not isinstance(asked, dict):
        raise BadRequest("'stream_options' must be an object.")
    return bool((asked or {}).get("include_usage"))


# --- Refusals ------------------------------------------------------------------------------------

REFUSED: dict[str, tuple[Callable[[Any], bool], str]] = {
    "n": (lambda value: value != 1, "'n' must be 1: one answer at a time."),
    "best_of": (lambda value: value != 1, "'best_of' must be 1."),
    "echo": (bool, "'echo' is not supported."),
    "functions": (bool, "'functions' is not supported; use 'tools'."),
    "function_call": (bool, "'function_call' is not supported; use 'tool_choice'."),
    "logit_bias": (bool, "'logit_bias' is not supported."),
    "audio": (bool, "'audio' is not supported."),
    "web_search_options": (bool, "'web_search_options' is not supported."),
    "modalities": (
        lambda value: value != ["text"],
        "'modalities' other than text is not supported.",
    ),
}


def refuse_what_cannot_be_honoured(body: dict[str, Any]) -> None:
    """Refuse what would change the answer and cannot be done, rather than drop it silently."""
    for name, (is_asked, message) in REFUSED.items():
        if body.get(name) is not None and is_asked(body[name]):
            raise BadRequest(message)


# --- Options --------------------------------------------------------------------------------------


def options(body: dict[str, Any]) -> dict[str, Any]:
    found = {name: body[name] for name in SAMPLING if body.get(name) is not None}
    limit = body.get("max_completion_tokens", body.get("max_tokens"))
    if limit is not None:
        found["num_predict"] = token_limit(limit)
    return found


def token_limit(limit: Any) -> int:
    if isinstance(limit, bool) or not isinstance(limit, int) or limit < 1:
        raise BadRequest("'max_completion_tokens' must be a whole number of at least 1.")
    return limit


def effort(asked: Any) -> bool | str | None:
    if asked is None:
        return None
    if not isinstance(asked, str) or asked not in EFFORTS:
        raise BadRequest(f"'reasoning_effort' must be one of {', '.join(EFFORTS)}.")
    return EFFORTS[asked]


def output_format(asked: Any) -> Any:
    """Return the native format of `response_format`; raise BadRequest."""
    if asked is None:
        return None
    kind = asked.get("type") if isinstance(asked, dict) else None
    if kind == "text":
        return None
    if kind == "json_object":
        return "json"
    schema = (asked.get("json_schema") or {}) if kind == "json_schema" else None
    if isinstance(schema, dict) and isinstance(schema.get("schema"), dict):
        return schema["schema"]
    raise BadRequest("'response_format' must be text, json_object or json_schema with a schema.")


def single_text(prompt: Any) -> str:
    if isinstance(prompt, list) and len(prompt) == 1:
        prompt = prompt[0]
    if not isinstance(prompt, str) or not prompt:
        raise BadRequest("'prompt' must be one text; lists and tokens are not supported.")
    return prompt


# --- Tools ----------------------------------------------------------------------------------------


def tools(asked: Any, choice: Any) -> list[Any] | None:
    """Return the tools the model is told of; raise BadRequest for a choice it cannot be held to."""
    if choice not in (None, "auto", "none"):
        raise BadRequest("'tool_choice' must be auto or none: a call cannot be forced.")
    if not asked or choice == "none":
        return None
    if not isinstance(asked, list) or any(not is_function(tool) for tool in asked):
        raise BadRequest("'tools' must be a list of objects of type function.")
    return asked


def is_function(tool: Any) -> bool:
    return isinstance(tool, dict) and tool.get("type") == "function"


# --- Messages -------------------------------------------------------------------------------------


def messages(asked: Any) -> list[dict[str, Any]]:
    """Return native messages; tool results get the name of the tool they answer."""
    if not isinstance(asked, list) or not asked:
        raise BadRequest("'messages' must be a list with at least one message.")
    names: dict[str, str] = {}
    return [message(one, f"messages[{i}]", names) for i, one in enumerate(asked)]


def message(asked: Any, where: str, names: dict[str, str]) -> dict[str, Any]:
    if not isinstance(asked, dict):
        raise BadRequest(f"'{where}' must be an object.")
    role = asked.get("role")
    found = {"role": ROLES.get(role, role) if isinstance(role, str) else role}
    found |= content(asked.get("content"), where)
    thinking = asked.get("reasoning") or asked.get("reasoning_content")
    if isinstance(thinking, str):
        found["thinking"] = thinking
    if asked.get("tool_calls"):
        found["tool_calls"] = tool_calls(asked["tool_calls"], where, names)
    if asked.get("tool_call_id") is not None:
        found["tool_call_id"] = asked["tool_call_id"]
        found["tool_name"] = names.get(str(asked["tool_call_id"]))
    return found


def content(asked: Any, where: str) -> dict[str, Any]:
    """Return the text and the images of a message's content, which may come in parts."""
    if asked is None:
        return {"content": ""}
    if isinstance(asked, str):
        return {"content": asked}
    if not isinstance(asked, list):
        raise BadRequest(f"'{where}.content' must be a text or a list of parts.")
    parts = [part(one, f"{where}.content[{i}]") for i, one in enumerate(asked)]
    images = [image for kind, image in parts if kind == "image"]
    text = "\n".join(text for kind, text in parts if kind == "text")
    return {"content": text, "images": images} if images else {"content": text}


def part(asked: Any, where: str) -> tuple[str, str]:
    kind = asked.get("type") if isinstance(asked, dict) else None
    if kind in ("text", "input_text", "output_text", "refusal"):
        return "text", require_text(asked.get("refusal" if kind == "refusal" else "text"), where)
    if kind in ("image_url", "input_image"):
        image = asked.get("image_url")
        return "image", data_url(image.get("url") if isinstance(image, dict) else image, where)
    raise BadRequest(f"'{where}' must be a part of type text or image_url.")


def require_text(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise BadRequest(f"'{where}' must hold a text.")
    return value


def data_url(url: Any, where: str) -> str:
    """Return the base64 of a data URL. Nothing is ever fetched for a client."""
    head, comma, encoded = url.partition(",") if isinstance(url, str) else ("", "", "")
    if not comma or not head.startswith("data:") or not head.endswith(";base64"):
        raise BadRequest(f"'{where}' must be a data URL in base64; addresses are not fetched.")
    return encoded


def tool_calls(asked: Any, where: str, names: dict[str, str]) -> list[dict[str, Any]]:
    if not isinstance(asked, list):
        raise BadRequest(f"'{where}.tool_calls' must be a list.")
    return [tool_call(call, f"{where}.tool_calls[{i}]", names) for i, call in enumerate(asked)]


def tool_call(asked: Any, where: str, names: dict[str, str]) -> dict[str, Any]:
    function = asked.get("function") if isinstance(asked, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise BadRequest(f"'{where}' must be a call of a function with a name.")
    call_id = asked.get("id")
    if isinstance(call_id, str):
        names[call_id] = function["name"]
    native = {"name": function["name"], "arguments": json_arguments(function, where)}
    return {"id": call_id, "function": native} if call_id is not None else {"function": native}


def json_arguments(function: dict[str, Any], where: str) -> dict[str, Any]:
    """Return the arguments, which OpenAI sends as JSON in a text."""
    try:
        found = json.loads(function.get("arguments") or "{}")
    except (TypeError, ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise BadRequest(f"'{where}.function.arguments' must be a JSON object in a text.")
    return found
