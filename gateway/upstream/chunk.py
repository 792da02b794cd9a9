"""One piece of an answer, as the model server sent it."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of an answer; `fields` is the native object it was read from.

    Counts are tokens, or None where the model server gave none that can be believed.
    """

    text: str = ""
    thinking: str = ""
    tool_calls: list[dict[str, Any]] = field(default_factory=list)
    done: bool = False
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    fields: dict[str, Any] = field(default_factory=dict)

    @property
    def carries_output(self) -> bool:
        return bool(self.text or self.thinking or self.tool_calls)


def objects(value: Any) -> list[dict[str, Any]]:
    """Return the objects of a list; none for anything that is not a list."""
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []
