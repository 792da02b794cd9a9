"""Which request field may go upstream, and how far. One table, pure.

The body that goes upstream is built here, field by field; the client's own bytes never go on.
A field in the table is checked. A known field that is not in it is dropped: `num_ctx`, `shift` and
`keep_alive` would reload, pin or unload a model for everybody. An unknown field is dropped too, so
that clients with extra fields keep working. A key that equals a known one only without regard to
case is refused: Ollama would read it as that one. So is a well-known name of another API that
bounds what a response costs, such as `max_tokens` on a native route: its sender would pay for the
default.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gateway.errors import BadRequest
from gateway.metering import Operation
from gateway.validation import isolation
from gateway.validation.inference_request import InferenceRequest
from gateway.validation.rules import (
    Limits,
    Rule,
    apply,
    arguments,
    each,
    flag,
    instead,
    last_tokens,
    nested,
    number,
    only_one,
    output_format,
    pictures,
    positive,
    positive_whole,
    refused,
    role,
    stops,
    text,
    texts,
    think,
    utf8_bytes,
    whole,
)

# What a chat template and a model's own system prompt add at most, what a template usually adds,
# and what one more message adds at most.
TEMPLATE_TOKENS = 256
TEMPLATE_TOKENS_USUAL = 10
MESSAGE_TOKENS = 32
# The most and the usual that one image takes in today's vision models.
IMAGE_TOKENS_BOUND = 4096
IMAGE_TOKENS_USUAL = 768
BYTES_PER_TOKEN_USUAL = 4
NOT_TEXT = frozenset({"options", "images"})
# Structures of the client's own: every bracket and digit of them is read.
READ_AS_JSON = frozenset({"tools", "tool_calls", "format"})


@dataclass(frozen=True, slots=True)
class UpstreamRequest:
    """A checked request: the body to send, and the most and the usual it can take, in tokens."""

    body: dict[str, Any]
    prompt_bound: int
    prompt_estimate: int
    completion_bound: int


def build(
    request: InferenceRequest,
    model: str,
    limits: Limits,
    salt: str = "",
    context: int | None = None,
) -> UpstreamRequest:
    """Return what goes upstream for a prompt; raise BadRequest naming the field that is wrong.

    `salt` isolates the prompt from those of other accounts (`isolation.py`); empty for none.
    `context`: how many tokens the model reads at most, where that is known.
    """
    body = apply(TABLE[request.operation], request.payload, "", limits)
    size = _text_bytes(body)
    if size > limits.max_prompt_bytes:
        raise BadRequest(f"The prompt is larger than {limits.max_prompt_bytes} bytes.")
    if salt:
        size += isolation.isolate(body, request.operation, salt)
    # A schema steers what the model writes; the model does not read it.
    read = size - _bytes_of("format", body.get("format"))
    pictures, texts = _count_images(body), _count_texts(body)
    overhead = texts * MESSAGE_TOKENS + TEMPLATE_TOKENS
    cap = _cap_completion(body, request.operation, limits)
    return UpstreamRequest(
        body={"model": model, "stream": True, **body} if cap else {"model": model, **body},
        # No byte-level tokenizer makes more tokens than there are bytes.
        prompt_bound=read + overhead + pictures * IMAGE_TOKENS_BOUND,
        prompt_estimate=_estimate(body, read, pictures, context),
        completion_bound=cap,
    )


def _estimate(body: Mapping[str, Any], size: int, pictures: int, context: int | None) -> int:
    """Return how many tokens a prompt of so many bytes usually has. Ollama cuts one that is longer
    than the context, and of several texts to embed each."""
    embeds = "input" in body
    template = 0 if embeds else TEMPLATE_TOKENS_USUAL
    usual = -(-size // BYTES_PER_TOKEN_USUAL) + pictures * IMAGE_TOKENS_USUAL + template
    contexts = _count_texts(body) if embeds else 1
    return usual if context is None else min(usual, context * contexts)


def _cap_completion(body: dict[str, Any], operation: Operation, limits: Limits) -> int:
    """Set `num_predict` to what will be held at most, and return it; 0 where nothing is written.

    Absent, zero and negative would mean ten contexts, no limit or worse upstream: here they mean
    the default.
    """
    if operation is Operation.EMBED:
        return 0
    asked = body.setdefault("options", {}).get("num_predict", 0)
    cap = asked if asked > 0 else limits.default_completion_tokens
    body["options"]["num_predict"] = min(cap, limits.max_completion_tokens)
    return int(body["options"]["num_predict"])


# --- Sizes -----------------------------------------------------------------------------------


def _text_bytes(fields: Mapping[str, Any]) -> int:
    """Return the bytes of everything a model may read as text; images are counted apart."""
    return sum(_bytes_of(name, value) for name, value in fields.items() if name not in NOT_TEXT)


def _bytes_of(name: str, value: Any) -> int:
    if name in READ_AS_JSON:
        return _json_bytes(value)
    if isinstance(value, str):
        return utf8_bytes(value)
    if isinstance(value, dict):
        return sum(map(len, value)) + _text_bytes(value)
    if isinstance(value, list):
        return sum(_bytes_of(name, item) for item in value)
    return 8  # a number or a truth value, as text


def _json_bytes(value: Any) -> int:
    """Return the most bytes of a value as a chat template writes it: Go escapes `<`, `>`, `&`."""
    written = json.dumps(value) if value else ""
    return len(written) + 5 * sum(map(written.count, "<>&"))


def _count_images(body: Mapping[str, Any]) -> int:
    messages = body.get("messages", [])
    return len(body.get("images", [])) + sum(len(m.get("images", [])) for m in messages)


def _count_texts(body: Mapping[str, Any]) -> int:
    texts = body.get("input", "")
    return len(body.get("messages", [])) + (len(texts) if isinstance(texts, list) else 1)


# --- The table -------------------------------------------------------------------------------

# What other APIs call `num_predict`.
LENGTHS = ("max_tokens", "max_completion_tokens", "max_output_tokens", "max_new_tokens")
_LENGTH_OPTIONS = {name: instead("num_predict") for name in LENGTHS}

OPTIONS: dict[str, Rule] = {
    **_LENGTH_OPTIONS,
    "num_predict": whole(-(2**31), 2**31),
    "temperature": number(0.0, 2.0),
    "top_k": whole(0, 1000),
    "top_p": number(0.0, 1.0),
    "min_p": number(0.0, 1.0),
    "typical_p": number(0.0, 1.0),
    "repeat_last_n": last_tokens(4096),
    "repeat_penalty": positive(10.0),
    "presence_penalty": number(-2.0, 2.0),
    "frequency_penalty": number(-2.0, 2.0),
    "seed": whole(-(2**31), 2**31 - 1),
    "stop": stops,
}

CALL: dict[str, Rule] = {"index": whole(0, 1000), "name": text, "arguments": arguments}

MESSAGE: dict[str, Rule] = {
    "role": role,
    "content": text,
    "thinking": text,
    "images": pictures,
    "tool_calls": each({"id": text, "function": nested(CALL)}),
    "tool_name": text,
    "tool_call_id": text,
}

TOOL: dict[str, Rule] = {
    "type": text,
    "function": nested({"name": text, "description": text, "parameters": arguments}),
}

COMMON: dict[str, Rule] = {
    "format": output_format,
    "think": think,
    "truncate": flag,
    "logprobs": flag,
    "top_logprobs": whole(0, 20),
    "options": nested(OPTIONS),
    **{name: instead("options.num_predict") for name in (*LENGTHS, "num_predict")},
    "stop": instead("options.stop"),
    "n": only_one,
    "best_of": only_one,
}

TABLE: dict[Operation, dict[str, Rule]] = {
    Operation.GENERATE: {
        "prompt": text,
        "suffix": text,
        "system": text,
        "images": pictures,
        "raw": refused,
        "template": refused,
        "context": refused,
        **COMMON,
    },
    Operation.CHAT: {"messages": each(MESSAGE), "tools": each(TOOL), **COMMON},
    Operation.EMBED: {
        "input": texts,
        "truncate": flag,
        "dimensions": positive_whole(100_000),
        "options": nested({}),
    },
}
