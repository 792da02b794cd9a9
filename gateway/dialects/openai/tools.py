"""Read the tools that OpenAI's clients offer a model. Pure.

Tools that OpenAI runs itself (web_search, mcp, …) and unknown types are left out, because clients
send them with every request. Only a request that depends on one is rejected.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from gateway.errors import BadRequest
from gateway.validation.inference_request import ClientTool

Tool = dict[str, Any]
FACTS = ("name", "description", "parameters")
CHOICES = ("auto", "none", "required")
# The object that holds a tool's facts in a chat completion. In the Responses API they are flat.
NESTED = ("function", "custom")
# The parameters of a custom tool, which the model knows as a function of one text.
INPUT: Tool = {
    "type": "object",
    "properties": {"input": {"type": "string"}},
    "required": ["input"],
}


def native_tools(body: Mapping[str, Any]) -> list[Tool] | None:
    """Return the tools that the model is told of, or None; raise BadRequest."""
    choice = body.get("tool_choice")
    if choice == "none":
        list(_offered(body))  # Malformed tools are rejected all the same.
        return None
    allowed = allowed_names(choice)
    tools = [tool for tool, client in _offered(body) if allowed is None or client.name in allowed]
    return tools or None


def client_tools(body: Mapping[str, Any]) -> dict[str, ClientTool]:
    """Return how the client knows the tools whose calls are not written as plain functions."""
    return {
        tool["function"]["name"]: client
        for tool, client in _offered(body)
        if client.kind != "function" or client.namespace
    }


def forced_tools(body: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the names of the tools of which the model must call one; raise BadRequest.

    `required`, a tool by its name, and a subset (`allowed_tools`) that is required.
    """
    choice = body.get("tool_choice")
    if choice is None or choice in ("auto", "none") or _mode(choice) == "auto":
        return ()
    names = [(tool["function"]["name"], client) for tool, client in _offered(body)]
    wanted = allowed_names(choice)
    forced = tuple(name for name, client in names if wanted is None or client.name in wanted)
    if not forced:
        raise BadRequest("'tool_choice' requires a call, but none of its functions is in 'tools'.")
    return forced


def allowed_names(choice: Any) -> set[str] | None:
    """Return the names that a choice restricts the tools to; None for all; raise BadRequest."""
    if choice is None or (isinstance(choice, str) and choice in CHOICES):
        return None
    kind = choice.get("type") if isinstance(choice, dict) else None
    if kind == "allowed_tools":
        tools: list[Any] = _subset(choice)["tools"]
        names = [_facts(tool).get("name") for tool in tools if isinstance(tool, dict)]
        return {name for name in names if isinstance(name, str)}
    if kind in NESTED and isinstance(name := _facts(choice).get("name"), str):
        return {name}
    raise BadRequest(
        f"'tool_choice' must be one of {', '.join(CHOICES)}, or name functions of 'tools'."
    )


def _mode(choice: Any) -> Any:
    is_subset = isinstance(choice, dict) and choice.get("type") == "allowed_tools"
    return _subset(choice).get("mode") if is_subset else None


def _subset(choice: Tool) -> Tool:
    """Return where a choice of type allowed_tools holds its mode and its tools."""
    subset = choice.get("allowed_tools", choice)
    if not isinstance(subset, dict) or subset.get("mode") not in ("auto", "required"):
        raise BadRequest("'tool_choice.mode' must be auto or required.")
    if not isinstance(subset.get("tools"), list):
        raise BadRequest("'tool_choice.tools' must be a list.")
    return subset


# --- One tool -------------------------------------------------------------------------------------


def _offered(body: Mapping[str, Any]) -> Iterator[tuple[Tool, ClientTool]]:
    """Yield each tool that a model can call, and how the client knows it; raise BadRequest."""
    offered = body.get("tools")
    if not isinstance(offered, list | None):
        raise BadRequest("'tools' must be a list.")
    for i, tool in enumerate(offered or []):
        yield from _read(tool, f"tools[{i}]", "")


def _read(tool: Any, where: str, namespace: str) -> Iterator[tuple[Tool, ClientTool]]:
    if not isinstance(tool, dict) or not isinstance(tool.get("type"), str):
        raise BadRequest(f"'{where}' must be an object with a type.")
    if tool["type"] == "namespace" and not namespace:
        yield from _members(tool, where)
    elif tool["type"] in NESTED:
        yield _native(tool, where, namespace)


def _members(tool: Tool, where: str) -> Iterator[tuple[Tool, ClientTool]]:
    members = tool.get("tools")
    if not isinstance(tool.get("name"), str) or not tool["name"] or not isinstance(members, list):
        raise BadRequest(f"'{where}' must be a namespace with a name and tools.")
    for i, member in enumerate(members):
        yield from _read(member, f"{where}.tools[{i}]", tool["name"])


def _native(tool: Tool, where: str, namespace: str) -> tuple[Tool, ClientTool]:
    facts = _facts(tool)
    if not isinstance(facts.get("name"), str):
        raise BadRequest(f"'{where}' must be a {tool['type']} tool with a name.")
    client = ClientTool(tool["type"], facts["name"], namespace)
    function = {name: facts.get(name) for name in FACTS}
    if client.kind == "custom":
        function |= {"description": _custom_description(facts), "parameters": INPUT}
    function["name"] = model_name(client.name, namespace)
    return {"type": "function", "function": function}, client


def model_name(name: str, namespace: str) -> str:
    """Return the name of a tool for the model: with its namespace, as Ollama writes it."""
    prefix = f"{namespace}." if namespace else ""
    return name if name.startswith(prefix) else prefix + name


def _facts(tool: Tool) -> Tool:
    """Return the object with a tool's name, which chat completions nest under its type."""
    facts = tool.get(tool["type"], tool) if tool.get("type") in NESTED else tool
    return facts if isinstance(facts, dict) else {}


def _custom_description(facts: Tool) -> str:
    """Return the description of a custom tool. Its grammar cannot be enforced, so the description
    shows it to the model."""
    input_format = facts.get("format")
    grammar = input_format.get("grammar", input_format) if isinstance(input_format, dict) else {}
    definition = grammar.get("definition") if isinstance(grammar, dict) else None
    rule = f"The input follows this grammar:\n{definition}" if definition else None
    texts = (facts.get("description"), rule)
    return "\n\n".join(text for text in texts if isinstance(text, str))
