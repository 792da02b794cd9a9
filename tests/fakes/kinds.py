"""The kinds of models of the fake, chosen by their names.

Ollama runs a chat in two ways: *rendered* models have a Go template, *native* ones are rendered by
llama-server. They differ in their errors and in how tool calls come.
"""

import hashlib
from dataclasses import dataclass

CONTEXT = 4096
FULL_PREFIX = "registry.ollama.ai/library/"


def full_name(name: str) -> str:
    """A model's name with its tag, as Ollama compares names."""
    name = name.lower()
    return name if ":" in name.rsplit("/", 1)[-1] else f"{name}:latest"


def digest(name: str) -> str:
    return hashlib.sha256(full_name(name).encode()).hexdigest()


@dataclass(frozen=True)
class Kind:
    """What a model can do, by the words in its name. One without such a word can do everything but
    embed, and never thinks."""

    name: str

    @property
    def embeds(self) -> bool:
        return "embed" in self.name

    @property
    def native(self) -> bool:
        return "native" in self.name

    @property
    def tools(self) -> bool:
        return not self.embeds and "plain" not in self.name

    @property
    def vision(self) -> bool:
        return not (self.embeds or self.native or "plain" in self.name)

    @property
    def thinking(self) -> bool:
        return not self.embeds and "plain" not in self.name

    @property
    def thinks_aloud(self) -> bool:
        """Whether its responses contain reasoning."""
        return "think" in self.name

    @property
    def capabilities(self) -> list[str]:
        if self.embeds:
            return ["embedding"]
        told = {"completion": True, "tools": self.tools, "thinking": self.thinks_aloud}
        return [name for name, able in told.items() if able]
