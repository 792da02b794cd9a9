"""Model names: every spelling of one model becomes one canonical name. Pure.

Grammar and defaults are Ollama's (types/model/name.go, internal/modelref): [host/][namespace/]
model[:tag], matched without regard to case. The canonical name is the shortest that keeps the
tag, in lower case: `llama3:latest`, `hf.co/user/repo:q4_0`.
"""

import re
from dataclasses import dataclass

DEFAULT_HOST = "registry.ollama.ai"
DEFAULT_NAMESPACE = "library"
DEFAULT_TAG = "latest"

_HOST = re.compile(r"[a-z0-9_][a-z0-9_.:-]{0,349}")
_NAMESPACE = re.compile(r"[a-z0-9_][a-z0-9_-]{0,79}")
_MODEL = re.compile(r"[a-z0-9_][a-z0-9_.-]{0,79}")
_TAG = _MODEL
_SCHEME = re.compile(r"https?://")


class InvalidName(ValueError):
    """Not a name by Ollama's grammar, or one of a model that runs elsewhere."""


@dataclass(frozen=True, slots=True)
class ModelName:
    """A model's name with every part filled in."""

    host: str
    namespace: str
    model: str
    tag: str

    def __str__(self) -> str:
        """Return the canonical name."""
        short = f"{self.model}:{self.tag}"
        if self.host != DEFAULT_HOST:
            return f"{self.host}/{self.namespace}/{short}"
        return short if self.namespace == DEFAULT_NAMESPACE else f"{self.namespace}/{short}"


def canonical(name: str) -> str:
    """Return the canonical name of any spelling; raise InvalidName."""
    return str(parse(name))


def parse(name: str) -> ModelName:
    """Read a name by Ollama's grammar; raise InvalidName with the reason."""
    if not name.isascii() or len(name) > 800:
        raise InvalidName("invalid model name")
    text = _without_source(name.strip().lower())
    text = _without_scheme(text)
    path, tag = _split_tag(text)
    parts = path.split("/")
    if len(parts) > 3:
        raise InvalidName("invalid model name")
    host, namespace = ([DEFAULT_HOST, DEFAULT_NAMESPACE][: 3 - len(parts)] + parts[:-1])[:2]
    return _checked(ModelName(host, namespace, parts[-1], tag))


def _without_source(text: str) -> str:
    """Drop `:local`; reject `:cloud` and `-cloud`, whose prompts would leave your network."""
    head, colon, source = text.rpartition(":")
    if colon and (source == "cloud" or (source.endswith("-cloud") and "/" not in source)):
        raise InvalidName("cloud models are not served here")
    if colon and source == "local":
        if head.endswith((":local", ":cloud", "-cloud")):
            raise InvalidName("invalid model name")
        return head
    return text


def _without_scheme(text: str) -> str:
    """Drop http:// or https://, which Ollama accepts in front of a host only."""
    match = _SCHEME.match(text)
    if match is None:
        return text
    if text.count("/") < 4:
        raise InvalidName("invalid model name")
    return text[match.end() :]


def _split_tag(text: str) -> tuple[str, str]:
    """Cut the tag at the last colon right of the last slash."""
    path, colon, tag = text.rpartition(":")
    if not colon or "/" in tag:
        return text, DEFAULT_TAG
    return path, tag


def _checked(name: ModelName) -> ModelName:
    grammar = ((_HOST, name.host), (_NAMESPACE, name.namespace), (_MODEL, name.model))
    if not all(part.fullmatch(text) for part, text in (*grammar, (_TAG, name.tag))):
        raise InvalidName("invalid model name")
    return name
