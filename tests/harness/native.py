"""Requests and lines of Ollama's API, for the families that use it."""

import json
from decimal import Decimal
from typing import Any

from gateway.dialects.ollama import LegacyEmbeddingsDialect
from gateway.metering import Operation, Receipt, Usage
from gateway.upstream.chunk import Chunk
from gateway.upstream.protocol import read_chunk
from gateway.validation.inference_request import InferenceRequest

GENERATE, CHAT, EMBED = Operation.GENERATE, Operation.CHAT, Operation.EMBED
LEGACY = LegacyEmbeddingsDialect()
RECEIPT = Receipt(Usage(5, 9), Decimal("0.000046"), "USD")
USAGE = {
    "prompt_tokens": 5,
    "completion_tokens": 9,
    "total_tokens": 14,
    "cost": "0.000046",
    "currency": "USD",
}


def prompt(operation: Operation = GENERATE, **fields: Any) -> InferenceRequest:
    return InferenceRequest(operation, "LLaMA3", True, fields)


def native(operation: Operation = GENERATE, **fields: Any) -> Chunk:
    return read_chunk(operation, json.dumps(fields).encode())


def read(line: bytes) -> Any:
    """The object on a line, which must be one line."""
    assert line.endswith(b"\n") and line.count(b"\n") == 1
    return json.loads(line)
