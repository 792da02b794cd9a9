"""Read OpenAI's messages and tool calls into native ones. Pure."""

import json
from typing import Any

from gateway.errors import BadRequest

ROLES = {"developer": "system", "function": "tool"}
TEXTS = ("text", "input_text", "output_text", "refusal")
IMAGES = ("image_url", "input_image")


def messages(asked: Any) -> list[dict[str, Any]]:
    """Return native messages; tool results get the name of the tool they answer."""
    if not isinstance(asked, list) or not asked:
        raise BadRequest("'messages' must be a list with at least one message.")
    names: dict[str, str] = {}
    return [message(one, f"messages[{i}]", names) for i, one in enumerate(asked)]


def message(asked: Any, where: str, names: dict[str, str]) -> dict[str, Any]:
    """Return one native message. `names`: the tools called so far, by the id of the call."""
    if not isinstance(asked, dict):
        raise BadRequest(f"'{where}' must be an object.")
    role = asked.get("role")
    if role is None:
        raise BadRequest(f"'{where}.role' is required.")
    found = {"role": ROLES.get(role, role) if isinstance(role, str) else role}
    found |= content(asked.get("content"), f"{where}.content")
    thinking = asked.get("reasoning") or asked.get("reasoning_content")
    if isinstance(thinking, str):
        found["thinking"] = thinking
    if asked.get("tool_calls"):
        found["tool_calls"] = tool_calls(asked["tool_calls"], f"{where}.tool_calls", names)
    if role == "function":
        found["tool_name"] = asked.get("name")
    if asked.get("tool_call_id") is not None:
        found |= answered(asked["tool_call_id"], names)
    return found


def answered(call_id: Any, names: dict[str, str]) -> dict[str, Any]:
    """Return which call a tool's result answers; native messages name the tool as well."""
    return {"tool_call_id": call_id, "tool_name": names.get(str(call_id))}


# --- What a message says --------------------------------------------------------------------------


def content(asked: Any, where: str) -> dict[str, Any]:
    """Return the text and the images of a message's content, which may come in parts."""
    if asked is None:
        return {"content": ""}
    if isinstance(asked, str):
        return {"content": asked}
    if not isinstance(asked, list):
        raise BadRequest(f"'{where}' must be a text or a list of parts.")
    parts = [part(one, f"{where}[{i}]") for i, one in enumerate(asked)]
    images = [image for kind, image in parts if kind == "image"]
    text = "\n".join(text for kind, text in parts if kind == "text")
    return {"content": text, "images": images} if images else {"content": text}


def part(asked: Any, where: str) -> tuple[str, str]:
    kind = asked.get("type") if isinstance(asked, dict) else None
    if kind in TEXTS:
        return "text", require_text(asked.get("refusal" if kind == "refusal" else "text"), where)
    if kind in IMAGES:
        image = asked.get("image_url")
        return "image", data_url(image.get("url") if isinstance(image, dict) else image, where)
    raise BadRequest(f"'{where}' must be a text or an image; other parts are not supported.")


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


# --- Tool calls -----------------------------------------------------------------------------------


def tool_calls(asked: Any, where: str, names: dict[str, str]) -> list[dict[str, Any]]:
    if not isinstance(asked, list):
        raise BadRequest(f"'{where}' must be a list.")
    return [chat_call(call, f"{where}[{i}]", names) for i, call in enumerate(asked)]


def chat_call(asked: Any, where: str, names: dict[str, str]) -> dict[str, Any]:
    custom = asked.get("custom") if isinstance(asked, dict) else None
    if isinstance(custom, dict):
        return custom_call(asked.get("id"), custom, f"{where}.custom", names)
    function = asked.get("function") if isinstance(asked, dict) else None
    if not isinstance(function, dict):
        raise BadRequest(f"'{where}' must be a call of a function.")
    return tool_call(asked.get("id"), function, f"{where}.function", names)


def custom_call(
    call_id: Any, custom: dict[str, Any], where: str, names: dict[str, str]
) -> dict[str, Any]:
    """Return a native call of a custom tool, which the model knows as a function of one text."""
    text = json.dumps({"input": require_text(custom.get("input"), f"{where}.input")})
    return tool_call(call_id, {"name": custom.get("name"), "arguments": text}, where, names)


def tool_call(
    call_id: Any, function: dict[str, Any], where: str, names: dict[str, str]
) -> dict[str, Any]:
    """Return a native tool call, and remember its name for its result."""
    name = function.get("name")
    if not isinstance(name, str):
        raise BadRequest(f"'{where}.name' must be a text.")
    if isinstance(call_id, str):
        names[call_id] = name
    native = {"name": name, "arguments": json_arguments(function.get("arguments"), where)}
    return {"id": call_id, "function": native} if call_id is not None else {"function": native}


def json_arguments(written: Any, where: str) -> dict[str, Any]:
    """Return the arguments of a call, which OpenAI sends as JSON in a text."""
    try:
        found = json.loads(written or "{}")
        # Infinity and NaN are read, and no JSON: nothing of them may go upstream.
        json.dumps(found, allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise BadRequest(f"'{where}.arguments' must be a JSON object in a text.")
    return found
