"""Force a tool call, which Ollama cannot do: have the model write the arguments as JSON. Pure.

The tools are not sent as tools. Their schema is the response format, so that only arguments can be
written, and a system message names the tools. The text that comes back is rendered as a call.

Limits: one call in a response, no thinking before it, and the arguments come at once.
"""

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from gateway.dialects.base import Renderer, SupportsKeepalive
from gateway.errors import GatewayError
from gateway.metering import Receipt
from gateway.upstream.chunk import Chunk
from gateway.validation.rules import require_shallow

Tool = dict[str, Any]
Schema = dict[str, Any]

NO_PARAMETERS: Schema = {"type": "object", "properties": {}}
# A stream is silent while the arguments are written. One of so many chunks sends a keep-alive.
KEEPALIVE_EVERY = 20


def force(payload: dict[str, Any], names: Sequence[str]) -> None:
    """Change a native chat request so that the model calls one of the named tools.

    Raises BadRequest for parameters that are nested too deeply to be written.
    """
    tools = [tool["function"] for tool in payload.pop("tools") if tool["function"]["name"] in names]
    require_shallow([tool.get("parameters") for tool in tools], "tools")
    payload["format"] = _schema(tools[0]) if len(tools) == 1 else _one_of(tools)
    # Ollama applies a format to a model that thinks only when it has ended thinking.
    payload["think"] = False
    payload["messages"] = _instructed(payload["messages"], _instruction(tools))


def _schema(tool: Tool) -> Schema:
    parameters = tool.get("parameters")
    return parameters if isinstance(parameters, dict) and parameters else NO_PARAMETERS


def _one_of(tools: Sequence[Tool]) -> Schema:
    """Return the schema of a call of any of the tools, which names the tool."""
    definitions: dict[str, Any] = {}
    calls = []
    for number, tool in enumerate(tools):
        arguments = _hoisted(_schema(tool), f"tool{number}_", definitions)
        properties = {"name": {"const": tool["name"]}, "arguments": arguments}
        calls.append(
            {
                "type": "object",
                "properties": properties,
                "required": ["name", "arguments"],
                "additionalProperties": False,
            }
        )
    return {"anyOf": calls} | ({"$defs": definitions} if definitions else {})


def _hoisted(schema: Schema, prefix: str, definitions: dict[str, Any]) -> Any:
    """Return a schema whose definitions were moved to the root, each under a name of its own.

    A reference is resolved at the root, which is another one inside `anyOf`.
    """
    renamed = _renamed(schema, prefix)
    for group in ("$defs", "definitions"):
        own = renamed.pop(group, None)
        if isinstance(own, dict):
            definitions |= {prefix + name: value for name, value in own.items()}
    return renamed


def _renamed(value: Any, prefix: str) -> Any:
    if isinstance(value, list):
        return [_renamed(each, prefix) for each in value]
    if not isinstance(value, dict):
        return value
    copied = {name: _renamed(each, prefix) for name, each in value.items()}
    target = copied.get("$ref")
    for group in ("#/$defs/", "#/definitions/"):
        if isinstance(target, str) and target.startswith(group):
            copied["$ref"] = f"#/$defs/{prefix}{target.removeprefix(group)}"
    return copied


def _instruction(tools: Sequence[Tool]) -> str:
    listed = "\n".join(_described(tool) for tool in tools)
    if len(tools) == 1:
        return (
            f"Call this tool:\n{listed}\n"
            "Answer only with the arguments of the call, as one JSON object."
        )
    return (
        f"Call one of these tools:\n{listed}\n"
        'Answer only with one JSON object: {"name": TOOL, "arguments": ARGUMENTS}.'
    )


def _described(tool: Tool) -> str:
    description = tool.get("description")
    text = f": {description}" if isinstance(description, str) and description else ""
    return f"{tool['name']}{text}\nIts arguments follow this schema: {json.dumps(_schema(tool))}"


def _instructed(messages: list[Tool], text: str) -> list[Tool]:
    """Return messages with a text in the first system message: many templates read no other."""
    for i, message in enumerate(messages):
        content = message.get("content")
        if message.get("role") == "system" and isinstance(content, str):
            joined = {**message, "content": f"{content}\n\n{text}" if content else text}
            return [*messages[:i], joined, *messages[i + 1 :]]
    return [{"role": "system", "content": text}, *messages]


# --- The response ---------------------------------------------------------------------------------


class ForcedCallRenderer:
    """Writes a response whose text is a call, by the renderer of the family."""

    def __init__(self, renderer: Renderer, names: Sequence[str]) -> None:
        self.content_type = renderer.content_type
        self._renderer = renderer
        self._names = names
        self._texts: list[str] = []
        self._chunks = 0

    def keepalive(self) -> bytes:
        return self._renderer.keepalive() if isinstance(self._renderer, SupportsKeepalive) else b""

    def chunk(self, chunk: Chunk) -> bytes:
        self._texts.append(chunk.text)
        self._chunks += 1
        return self.keepalive() if self._chunks % KEEPALIVE_EVERY == 0 else b""

    def last(self, chunk: Chunk, receipt: Receipt | None) -> bytes:
        self._texts.append(chunk.text)
        return self._renderer.last(self._called(chunk), receipt)

    def error(self, error: GatewayError) -> bytes:
        return self._renderer.error(error)

    def compact(self, chunk: Chunk) -> Chunk:
        return self._renderer.compact(chunk)

    def body(self, chunks: Sequence[Chunk], receipt: Receipt | None) -> bytes:
        self._texts = [chunk.text for chunk in chunks]
        return self._renderer.body([self._called(chunks[-1])], receipt)

    def _called(self, last: Chunk) -> Chunk:
        """Return the whole response as one chunk: a call, or its text where that is none."""
        text = "".join(self._texts)
        fields = {name: value for name, value in last.fields.items() if name != "logprobs"}
        call = None if fields.get("done_reason") == "length" else call_in(text, self._names)
        if call is None:
            return replace(last, text=text, thinking="", fields=fields)
        return replace(last, text="", thinking="", tool_calls=[{"function": call}], fields=fields)


def call_in(text: str, names: Sequence[str]) -> dict[str, Any] | None:
    """Return the name and the arguments of a call that a model wrote; None if it wrote none."""
    try:
        written = json.loads(text, parse_constant=_reject)
    except (ValueError, RecursionError):
        return None
    if not isinstance(written, dict):
        return None
    if len(names) == 1:
        return {"name": names[0], "arguments": written}
    arguments = written.get("arguments")
    if written.get("name") not in names or not isinstance(arguments, dict):
        return None
    return {"name": written["name"], "arguments": arguments}


def _reject(name: str) -> float:
    raise ValueError(f"{name} is not JSON")
