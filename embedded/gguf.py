"""Read the header of a GGUF file: the metadata of a model."""

import struct
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

SCALARS = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "?",
    10: "Q",
    11: "q",
    12: "d",
}
STRING, ARRAY = 8, 9

# llama.cpp's numbers for the most common quantizations.
FILE_TYPES = {
    0: "F32",
    1: "F16",
    2: "Q4_0",
    3: "Q4_1",
    7: "Q8_0",
    8: "Q5_0",
    9: "Q5_1",
    15: "Q4_K_M",
}


@dataclass(frozen=True, slots=True)
class Header:
    """Metadata by key, without long lists (the vocabulary), and the number of parameters."""

    metadata: dict[str, Any]
    parameters: int

    def own(self, key: str) -> Any:
        """Return a value whose key begins with the architecture, like `llama.block_count`."""
        return self.metadata[f"{self.metadata['general.architecture']}.{key}"]

    @property
    def quantization(self) -> str:
        return FILE_TYPES.get(self.metadata.get("general.file_type", -1), "unknown")


def read_header(path: Path) -> Header:
    """Return the header of the file; raise ValueError if it is not a GGUF file."""
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise ValueError(f"{path} is not a GGUF file")
        _version, tensors, pairs = _unpack(file, "IQQ")
        items = ((_string(file), _value(file, *_unpack(file, "I"))) for _ in range(pairs))
        metadata = {key: value for key, value in items if not isinstance(value, list)}
        return Header(metadata, sum(_tensor_size(file) for _ in range(tensors)))


def _unpack(file: BinaryIO, layout: str) -> tuple[Any, ...]:
    layout = "<" + layout
    return struct.unpack(layout, file.read(struct.calcsize(layout)))


def _string(file: BinaryIO) -> str:
    (length,) = _unpack(file, "Q")
    return file.read(length).decode("utf-8", "replace")


def _value(file: BinaryIO, kind: int) -> Any:
    if kind == STRING:
        return _string(file)
    if kind != ARRAY:
        return _unpack(file, SCALARS[kind])[0]
    inner, length = _unpack(file, "IQ")
    return [_value(file, inner) for _ in range(length)]


def _tensor_size(file: BinaryIO) -> int:
    _string(file)
    (dimensions,) = _unpack(file, "I")
    shape = _unpack(file, f"{dimensions}Q")
    _unpack(file, "IQ")
    return prod(shape)
