"""Read the tools OpenAI's clients offer a model into native ones. Pure."""

from collections.abc import Callable
from typing import Any

from gateway.errors import BadRequest

Tool = dict[str, Any]
FACTS = ("name", "description", "parameters")


def chat_tools(asked: Any, choice: Any) -> list[Tool] | None:
    """Return the tools of a chat: objects of type function with the function inside."""
    return tools(asked, choice, lambda tool: tool.get("function"))


def response_tools(asked: Any, choice: Any) -> list[Tool] | None:
    """Return the tools of a response: functions written flat."""
    return tools(asked, choice, lambda tool: tool)


def tools(asked: Any, choice: Any, function: Callable[[Tool], Any]) -> list[Tool] | None:
    """Return the tools the model is told of; raise BadRequest for a choice it cannot be held to."""
    if choice not in (None, "auto", "none"):
        raise BadRequest("'tool_choice' must be auto or none: a call cannot be forced.")
    if asked is None:
        return None
    if not isinstance(asked, list):
        raise BadRequest("'tools' must be a list.")
    found = [native(tool, f"tools[{i}]", function) for i, tool in enumerate(asked)]
    return None if choice == "none" else found or None


def native(tool: Any, where: str, function: Callable[[Tool], Any]) -> Tool:
    if not isinstance(tool, dict):
        raise BadRequest(f"'{where}' must be an object.")
    if tool.get("type") != "function":
        raise BadRequest(f"'{where}' must be of type function; others are not supported.")
    told = function(tool)
    if not isinstance(told, dict) or not isinstance(told.get("name"), str):
        raise BadRequest(f"'{where}' must be a function with a name.")
    return {"type": "function", "function": {name: told.get(name) for name in FACTS}}
