"""Read Anthropic's requests into native fields; refuse by name what cannot be honoured. Pure."""

from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Any

from gateway.errors import BadRequest

Block = dict[str, Any]
Native = dict[str, Any]
# A tool's name by the id of its call: results carry the id alone.
Names = dict[str, str]

SAMPLING = ("temperature", "top_p", "top_k")
EFFORTS = {"low": "low", "medium": "medium", "high": "high", "xhigh": "max", "max": "max"}
CHOICES = ("auto", "none", "any", "tool")
THINKING = ("enabled", "adaptive", "disabled")
IMAGES = ("image/png", "image/jpeg")
# What runs on Anthropic's side; a client that asks for it counts on it.
REFUSED = ("mcp_servers", "container")
# Which blocks may stand in whose message.
KINDS = {
    "system": ("text",),
    "user": ("text", "image", "tool_result"),
    "assistant": ("text", "thinking", "redacted_thinking", "tool_use"),
}
# Tools that run on Anthropic's side, by the beginning of their type, and what they leave in the
# history. Clients declare them with every request, so they are left out.
SERVER_TOOLS = ("web_search_", "web_fetch_", "code_execution_", "tool_search_tool_", "mcp_toolset")
SERVER_BLOCKS = (
    "server_tool_use", "web_search_tool_result", "web_fetch_tool_result",
    "code_execution_tool_result", "bash_code_execution_tool_result",
    "text_editor_code_execution_tool_result", "tool_search_tool_result", "mcp_tool_use",
    "mcp_tool_result",
)  # fmt: skip


def chat_fields(body: dict[str, Any]) -> dict[str, Any]:
    """Return the native fields of a messages request; raise BadRequest."""
    for name in REFUSED:
        if body.get(name):
            raise BadRequest(f"'{name}' is not supported.")
    fields = {
        "messages": system(body.get("system")) + messages(body.get("messages")),
        "tools": tools(body.get("tools"), body.get("tool_choice")),
        "format": output_format(body),
        "think": think(body),
        "options": options(body),
    }
    return {name: value for name, value in fields.items() if value is not None}


# --- Options --------------------------------------------------------------------------------------


def options(body: dict[str, Any]) -> dict[str, Any]:
    found = {name: number(body[name], name) for name in SAMPLING if body.get(name) is not None}
    stops = body.get("stop_sequences")
    if stops is not None:
        found["stop"] = texts(stops, "stop_sequences")
    return found | {"num_predict": token_limit(body.get("max_tokens"))}


def token_limit(limit: Any) -> int:
    if isinstance(limit, bool) or not isinstance(limit, int) or limit < 1:
        raise BadRequest("'max_tokens' is required: a whole number of at least 1.")
    return limit


def number(value: Any, name: str) -> Any:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise BadRequest(f"'{name}' must be a number.")
    return value


def texts(value: Any, name: str) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise BadRequest(f"'{name}' must be a list of strings.")
    return value


def think(body: dict[str, Any]) -> bool | str | None:
    """Return whether and how hard to think; without a word on it the model does as it likes."""
    kind = type_of(body.get("thinking"))
    if body.get("thinking") is not None and kind not in THINKING:
        raise BadRequest(f"'thinking.type' must be one of {', '.join(THINKING)}.")
    effort = output_config(body).get("effort")
    if effort is not None and effort not in list(EFFORTS):
        raise BadRequest(f"'output_config.effort' must be one of {', '.join(EFFORTS)}.")
    if kind == "disabled":
        return False
    # Adaptive leaves it to the model, which thinks by default where it can.
    return EFFORTS[effort] if effort else True if kind == "enabled" else None


def output_format(body: dict[str, Any]) -> dict[str, Any] | None:
    """Return the JSON schema an answer is to follow, which older clients name one level up."""
    asked = output_config(body).get("format") or body.get("output_format")
    if asked is None:
        return None
    schema = asked.get("schema") if type_of(asked) == "json_schema" else None
    if not isinstance(schema, dict):
        raise BadRequest("'output_config.format' must be of type json_schema, with a schema.")
    return schema


def output_config(body: dict[str, Any]) -> dict[str, Any]:
    asked = body.get("output_config")
    if asked is not None and not isinstance(asked, dict):
        raise BadRequest("'output_config' must be an object.")
    return asked or {}


# --- Tools ----------------------------------------------------------------------------------------


def tools(offered: Any, choice: Any) -> list[Native] | None:
    """Return the tools that the model is told of, or None; raise BadRequest."""
    if choice is not None and type_of(choice) not in CHOICES:
        raise BadRequest(f"'tool_choice.type' must be one of {', '.join(CHOICES)}.")
    if not isinstance(offered, list | None):
        raise BadRequest("'tools' must be a list.")
    found = [
        tool(one, f"tools[{i}]") for i, one in enumerate(offered or []) if not is_server_tool(one)
    ]
    return found if found and type_of(choice) != "none" else None


def forced_tools(body: dict[str, Any]) -> tuple[str, ...]:
    """Return the names of the tools of which the model must call one; raise BadRequest."""
    choice: dict[str, Any] = body.get("tool_choice") or {}
    if type_of(choice) not in ("any", "tool"):
        return ()
    names = [tool["function"]["name"] for tool in tools(body.get("tools"), choice) or []]
    wanted = names if type_of(choice) == "any" else [choice.get("name")]
    forced = tuple(name for name in names if name in wanted)
    if not forced:
        raise BadRequest("'tool_choice' requires a call, but none of its tools is in 'tools'.")
    return forced


def is_server_tool(tool: Any) -> bool:
    kind = type_of(tool)
    return isinstance(kind, str) and kind.startswith(SERVER_TOOLS)


def tool(asked: Any, where: str) -> Native:
    if not isinstance(asked, dict):
        raise BadRequest(f"'{where}' must be an object.")
    if asked.get("type") not in (None, "custom"):
        raise BadRequest(
            f"'{where}' is of type {shown(asked['type'])}: only tools of your own are supported, "
            "with a name and an input_schema."
        )
    function = {
        "name": text_in(asked, "name", where),
        "parameters": object_in(asked, "input_schema", where),
    }
    if asked.get("description") is not None:
        function["description"] = text_in(asked, "description", where)
    return {"type": "function", "function": function}


# --- Messages -------------------------------------------------------------------------------------


def system(asked: Any) -> list[Native]:
    """Return the system prompt as the first message, if there is one."""
    if asked is None or asked in ("", []):
        return []
    return written("system", asked, "system", {})


def messages(asked: Any) -> list[Native]:
    """Return native messages; one of Anthropic's may become several."""
    if not isinstance(asked, list) or not asked:
        raise BadRequest("'messages' must be a list with at least one message.")
    names: Names = {}
    return [native for i, one in enumerate(asked) for native in message(one, i, names)]


def message(asked: Any, position: int, names: Names) -> list[Native]:
    where = f"messages[{position}]"
    if not isinstance(asked, dict):
        raise BadRequest(f"'{where}' must be an object.")
    role = asked.get("role")
    if not isinstance(role, str) or role not in KINDS:
        raise BadRequest(f"'{where}.role' must be one of user, assistant, system.")
    return written(role, asked.get("content"), f"{where}.content", names)


def written(role: str, content: Any, where: str, names: Names) -> list[Native]:
    """Return what a message says, in order: each tool result is a message of its own."""
    if isinstance(content, str):
        return [{"role": role, "content": content}]
    blocks = blocks_of(content, where, KINDS[role])
    found: list[Native] = []
    for is_result, group in groupby(blocks, key=lambda block: block[1]["type"] == "tool_result"):
        if is_result:
            found += [tool_result(block, at, names) for at, block in group]
        else:
            found.append({"role": role, **merged(list(group), names)})
    return found or [{"role": role, "content": ""}]


def blocks_of(content: Any, where: str, kinds: Sequence[str]) -> list[tuple[str, Block]]:
    """Return the blocks of a content, each with its place; raise BadRequest for a foreign one."""
    if not isinstance(content, list):
        raise BadRequest(f"'{where}' must be a text or a list of blocks.")
    found = [
        (f"{where}[{i}]", block)
        for i, block in enumerate(content)
        if type_of(block) not in SERVER_BLOCKS
    ]
    for at, block in found:
        if type_of(block) not in kinds:
            kind = shown(type_of(block))
            raise BadRequest(f"'{at}' is of type {kind}; supported here: {', '.join(kinds)}.")
    return found


def merged(blocks: Sequence[tuple[str, Block]], names: Names) -> Native:
    """Return what blocks say together, as one native message has it."""
    parts = [part for at, block in blocks for part in PARTS[block["type"]](block, at, names)]

    def all_of(name: str) -> list[Any]:
        return [value for part, value in parts if part == name]

    said = {"content": "\n".join(all_of("content")), "thinking": "\n".join(all_of("thinking"))}
    listed = {name: all_of(name) for name in ("images", "tool_calls")}
    return {name: value for name, value in (said | listed).items() if value or name == "content"}


def tool_result(block: Block, where: str, names: Names) -> Native:
    """Return a tool's result as a message, with the name of the tool if its call is there."""
    call_id = text_in(block, "tool_use_id", where)
    content = block.get("content")
    if isinstance(content, str | None):
        found: Native = {"content": content or ""}
    else:
        found = merged(blocks_of(content, f"{where}.content", ("text", "image")), names)
    if block.get("is_error"):
        # The native message has no such mark, and the model must know.
        found["content"] = f"Error: {found['content']}"
    named = {"tool_name": names[call_id]} if call_id in names else {}
    return {"role": "tool", "tool_call_id": call_id, **named, **found}


# --- Blocks: each becomes parts of a native message, as name and value ----------------------------

Part = tuple[str, Any]


def text(block: Block, where: str, _names: Names) -> list[Part]:
    return [("content", text_in(block, "text", where))]


def thinking(block: Block, where: str, _names: Names) -> list[Part]:
    return [("thinking", text_in(block, "thinking", where))]


def redacted(_block: Block, _where: str, _names: Names) -> list[Part]:
    """Drop thinking that only Anthropic can read."""
    return []


def image(block: Block, where: str, _names: Names) -> list[Part]:
    """Return the base64 of an image. Nothing is ever fetched for a client."""
    source = block.get("source")
    if not isinstance(source, dict) or source.get("type") != "base64":
        kind = shown(type_of(source))
        raise BadRequest(f"'{where}.source' is of type {kind}; only base64 is supported.")
    if source.get("media_type") not in IMAGES:
        raise BadRequest(f"'{where}.source.media_type' must be {' or '.join(IMAGES)}.")
    return [("images", text_in(source, "data", f"{where}.source"))]


def tool_use(block: Block, where: str, names: Names) -> list[Part]:
    call_id, name = text_in(block, "id", where), text_in(block, "name", where)
    names[call_id] = name
    function = {"name": name, "arguments": object_in(block, "input", where)}
    return [("tool_calls", {"id": call_id, "function": function})]


PARTS: dict[str, Callable[[Block, str, Names], list[Part]]] = {
    "text": text,
    "thinking": thinking,
    "redacted_thinking": redacted,
    "image": image,
    "tool_use": tool_use,
}


# --- Values ---------------------------------------------------------------------------------------


def type_of(value: Any) -> Any:
    return value.get("type") if isinstance(value, dict) else None


def shown(kind: Any) -> str:
    """Return a type as a message may name it."""
    return kind[:60] if isinstance(kind, str) else "nothing known"


def text_in(value: dict[str, Any], name: str, where: str) -> str:
    found = value.get(name)
    if not isinstance(found, str):
        raise BadRequest(f"'{where}.{name}' must be a string.")
    return found


def object_in(value: dict[str, Any], name: str, where: str) -> dict[str, Any]:
    found = value.get(name)
    if not isinstance(found, dict):
        raise BadRequest(f"'{where}.{name}' must be an object.")
    return found
