"""Read the instructions and the input of the Responses API into native messages. Pure."""

from collections.abc import Callable
from typing import Any

from gateway.dialects.openai.messages import answered, content, custom_call, message, tool_call
from gateway.dialects.openai.tools import model_name
from gateway.errors import BadRequest

Messages = list[dict[str, Any]]
Item = dict[str, Any]

# In front of the thinking that a response repeats as `encrypted_content`. What another provider
# encrypted lacks it and is left out.
THINKING = "gateway.thinking:"
# Calls of tools that OpenAI runs. The assistant's message after them holds what they led to.
HOSTED = (
    "code_interpreter_call", "computer_call", "computer_call_output", "file_search_call",
    "image_generation_call", "local_shell_call", "local_shell_call_output", "mcp_approval_request",
    "mcp_approval_response", "mcp_call", "mcp_list_tools", "shell_call", "shell_call_output",
    "tool_search_call", "tool_search_output", "web_search_call",
)  # fmt: skip


def input_messages(given: Any, instructions: Any) -> Messages:
    """Return native messages for instructions and input, which is a text or a list of items."""
    if not isinstance(instructions, str | None):
        raise BadRequest("'instructions' must be a text.")
    if not given or not isinstance(given, str | list):
        raise BadRequest("'input' must be a text or a list of items.")
    items = [{"role": "user", "content": given}] if isinstance(given, str) else given
    conversation = Conversation()
    if instructions:
        conversation.messages.append({"role": "system", "content": instructions})
    for i, item in enumerate(items):
        conversation.add(item, f"input[{i}]")
    conversation.flush_thinking()
    if not conversation.messages:
        raise BadRequest("'input' holds nothing to answer.")
    return conversation.messages


class Conversation:
    """Native messages, made from items: one message holds what an assistant thinks, says and calls,
    for which the API has an item each."""

    def __init__(self) -> None:
        self.messages: Messages = []
        # The names of the tools called so far, by the id of the call.
        self._names: dict[str, str] = {}
        self._thinking = ""

    def add(self, item: Any, where: str) -> None:
        """Add one item; raise BadRequest."""
        if not isinstance(item, dict):
            raise BadRequest(f"'{where}' must be an object.")
        kind = item.get("type", "message")
        if kind in HOSTED:
            return
        if kind == "item_reference":
            raise BadRequest(
                f"'{where}' refers to a stored item, and nothing is stored here. "
                "Set 'store' to false in your client."
            )
        if not isinstance(kind, str) or kind not in ITEMS:
            kinds = ", ".join(ITEMS)
            raise BadRequest(f"'{where}' must be of type {kinds}; others are not supported.")
        ITEMS[kind](self, item, where)

    def add_message(self, item: Item, where: str) -> None:
        fields = {"role": item.get("role"), "content": item.get("content")}
        native = message(fields, where, self._names)
        if native["role"] != "assistant":
            self.flush_thinking()
        elif self._calls_wait():
            # Between a call and its result: the result must follow the message with the call.
            self._join(native["content"])
            return
        self._append(native)

    def add_call(self, item: Item, where: str) -> None:
        name, namespace = item.get("name"), item.get("namespace")
        if isinstance(name, str) and isinstance(namespace, str):
            item = {**item, "name": model_name(name, namespace)}
        self._call(tool_call(item.get("call_id"), item, where, self._names))

    def add_custom_call(self, item: Item, where: str) -> None:
        self._call(custom_call(item.get("call_id"), item, where, self._names))

    def add_result(self, item: Item, where: str) -> None:
        self.flush_thinking()
        output = content(item.get("output"), f"{where}.output")
        answers = answered(item.get("call_id"), self._names)
        self.messages.append({"role": "tool", **output, **answers})

    def add_reasoning(self, item: Item, where: str) -> None:
        """Keep what the model thought for its next message or call."""
        self._thinking += thinking_of(item)

    def flush_thinking(self) -> None:
        """Make a message of thinking after which the assistant said and called nothing."""
        if self._thinking:
            self._append({"role": "assistant", "content": ""})

    def _append(self, native: dict[str, Any]) -> None:
        if self._thinking and native["role"] == "assistant":
            native["thinking"], self._thinking = self._thinking, ""
        self.messages.append(native)

    def _call(self, call: dict[str, Any]) -> None:
        last = self.messages[-1] if self.messages else None
        if last is None or last["role"] != "assistant" or self._thinking:
            self._append({"role": "assistant", "content": ""})
        self.messages[-1].setdefault("tool_calls", []).append(call)

    def _calls_wait(self) -> bool:
        return bool(self.messages) and "tool_calls" in self.messages[-1] and not self._thinking

    def _join(self, text: str) -> None:
        last = self.messages[-1]
        last["content"] = "\n".join(filter(None, (last["content"], text)))


ITEMS: dict[str, Callable[[Conversation, Item, str], None]] = {
    "message": Conversation.add_message,
    "function_call": Conversation.add_call,
    "function_call_output": Conversation.add_result,
    "custom_tool_call": Conversation.add_custom_call,
    "custom_tool_call_output": Conversation.add_result,
    "reasoning": Conversation.add_reasoning,
}


def thinking_of(item: Item) -> str:
    """Return the thinking in a reasoning item that a response of ours held; else its summary."""
    encrypted = item.get("encrypted_content")
    if isinstance(encrypted, str):
        return encrypted.removeprefix(THINKING) if encrypted.startswith(THINKING) else ""
    summary = item.get("summary")
    parts = summary if isinstance(summary, list) else []
    texts = [part.get("text") for part in parts if isinstance(part, dict)]
    return "\n".join(text for text in texts if isinstance(text, str))
