"""Which request field may go upstream, and how far. One table, pure.

The body that goes upstream is built here, field by field; the client's own bytes never go on.
A field in the table is checked. A known field that is not in it is dropped: `num_ctx`, `shift` and
`keep_alive` would reload, pin or unload a model for everybody. An unknown field is dropped too, so
that clients with extra fields keep working. A key that equals a known one only without regard to
case is refused: Ollama would read it as that one.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from gateway import images
from gateway.errors import BadRequest
from gateway.prompt import Operation, Prompt

Rule = Callable[[Any, str, "Limits"], Any]

# What a chat template and a model's own system prompt add, and what one more message adds.
TEMPLATE_TOKENS = 256
MESSAGE_TOKENS = 32
# The most and the usual that one image takes in today's vision models.
IMAGE_TOKENS_BOUND = 4096
IMAGE_TOKENS_USUAL = 768
BYTES_PER_TOKEN_USUAL = 4
MAX_DEPTH = 64
MAX_STOPS, MAX_STOP_BYTES = 8, 128
ROLES = ("system", "user", "assistant", "tool")
EFFORTS = ("low", "medium", "high", "max")
NOT_TEXT = frozenset({"options", "images"})
# Structures of the client's own: every bracket and digit of them is read.
READ_AS_JSON = frozenset({"tools", "tool_calls", "format"})


@dataclass(frozen=True, slots=True)
class Limits:
    """How much one request may ask for. Sizes are bytes, completions tokens."""

    max_prompt_bytes: int
    max_images: int
    max_image_bytes: int
    max_embed_inputs: int
    default_completion_tokens: int
    max_completion_tokens: int


@dataclass(frozen=True, slots=True)
class Job:
    """A checked request: the body to send, and the most and the usual it can take, in tokens."""

    body: dict[str, Any]
    prompt_bound: int
    prompt_estimate: int
    completion_bound: int


def build(prompt: Prompt, model: str, limits: Limits) -> Job:
    """Return what goes upstream for a prompt; raise BadRequest naming the field that is wrong."""
    body = apply(TABLE[prompt.operation], prompt.fields, "", limits)
    size = _text_bytes(body)
    if size > limits.max_prompt_bytes:
        raise BadRequest(f"The prompt is larger than {limits.max_prompt_bytes} bytes.")
    pictures, texts = _count_images(body), _count_texts(body)
    overhead = texts * MESSAGE_TOKENS + TEMPLATE_TOKENS
    cap = _cap_completion(body, prompt.operation, limits)
    return Job(
        body={"model": model, "stream": True, **body} if cap else {"model": model, **body},
        # No byte-level tokenizer makes more tokens than there are bytes.
        prompt_bound=size + overhead + pictures * IMAGE_TOKENS_BOUND,
        prompt_estimate=-(-size // BYTES_PER_TOKEN_USUAL) + pictures * IMAGE_TOKENS_USUAL,
        completion_bound=cap,
    )


def apply(rules: Mapping[str, Rule], fields: Any, where: str, limits: Limits) -> dict[str, Any]:
    """Return the fields that have a rule, each checked by it; null counts as absent."""
    if not isinstance(fields, dict):
        raise BadRequest(f"'{where.rstrip('.')}' must be an object.")
    refuse_lookalikes(fields, where)
    asked = {name: rule for name, rule in rules.items() if fields.get(name) is not None}
    checked = {name: rule(fields[name], where + name, limits) for name, rule in asked.items()}
    return {name: value for name, value in checked.items() if value is not None}


def refuse_lookalikes(fields: Mapping[str, Any], where: str = "") -> None:
    """Raise BadRequest for a key that is a known one but for its case or a folded letter."""
    for key in fields:
        folded = key.casefold()
        if key != folded and folded in KNOWN:
            raise BadRequest(f"Unknown key {json.dumps(where + key)}: did you mean '{folded}'?")


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
        return _utf8_bytes(value)
    if isinstance(value, dict):
        return sum(map(len, value)) + _text_bytes(value)
    if isinstance(value, list):
        return sum(_bytes_of(name, item) for item in value)
    return 8  # a number or a truth value, as text


def _json_bytes(value: Any) -> int:
    """Return the most bytes of a value as a chat template writes it: Go escapes `<`, `>`, `&`."""
    written = json.dumps(value) if value else ""
    return len(written) + 5 * sum(map(written.count, "<>&"))


def _utf8_bytes(value: str) -> int:
    return len(value.encode("utf-8", "surrogatepass"))


def _count_images(body: Mapping[str, Any]) -> int:
    messages = body.get("messages", [])
    return len(body.get("images", [])) + sum(len(m.get("images", [])) for m in messages)


def _count_texts(body: Mapping[str, Any]) -> int:
    texts = body.get("input", "")
    return len(body.get("messages", [])) + (len(texts) if isinstance(texts, list) else 1)


# --- Rules: each takes a value, its name and the limits, and returns what may be sent -----------


def text(value: Any, name: str, _limits: Limits) -> str:
    if not isinstance(value, str):
        raise BadRequest(f"'{name}' must be a string.")
    return value


def flag(value: Any, name: str, _limits: Limits) -> bool:
    if not isinstance(value, bool):
        raise BadRequest(f"'{name}' must be true or false.")
    return value


def number(low: float, high: float) -> Rule:
    """Return a rule that takes any number and clamps it to the documented range."""

    def rule(value: Any, name: str, _limits: Limits) -> float:
        return min(max(_numeric(value, name), low), high)

    return rule


def whole(low: int, high: int) -> Rule:
    """Return a rule that takes any number, cuts its fraction as Ollama does, and clamps it."""

    def rule(value: Any, name: str, _limits: Limits) -> int:
        return min(max(int(_numeric(value, name)), low), high)

    return rule


def _numeric(value: Any, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise BadRequest(f"'{name}' must be a number.")
    return value


def stops(value: Any, name: str, _limits: Limits) -> list[str]:
    found = [value] if isinstance(value, str) else value
    if not isinstance(found, list) or not all(isinstance(stop, str) for stop in found):
        raise BadRequest(f"'{name}' must be a list of strings.")
    if len(found) > MAX_STOPS or any(_utf8_bytes(stop) > MAX_STOP_BYTES for stop in found):
        raise BadRequest(f"'{name}' takes at most {MAX_STOPS} strings of {MAX_STOP_BYTES} bytes.")
    return found


def think(value: Any, name: str, _limits: Limits) -> bool | str:
    if not isinstance(value, bool) and value not in EFFORTS:
        raise BadRequest(f"'{name}' must be true, false or one of {', '.join(EFFORTS)}.")
    return value  # type: ignore[no-any-return]


def output_format(value: Any, name: str, _limits: Limits) -> str | dict[str, Any] | None:
    if value == "":
        return None
    if value != "json" and not isinstance(value, dict):
        raise BadRequest(f"'{name}' must be \"json\" or a JSON schema.")
    return shallow(value, name, _limits)  # type: ignore[no-any-return]


def shallow(value: Any, name: str, _limits: Limits) -> Any:
    """Let any JSON pass that is not nested so deeply that parsing it is the attack."""
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [inner for outer in level for inner in _children(outer)]
        if not level:
            return value
    raise BadRequest(f"'{name}' is nested too deeply.")


def _children(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return list(value.values())
    return value if isinstance(value, list) else []


def pictures(value: Any, name: str, limits: Limits) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise BadRequest(f"'{name}' must be a list of base64 strings.")
    if len(value) > limits.max_images:
        raise BadRequest(f"'{name}' takes at most {limits.max_images} images.")
    for position, item in enumerate(value):
        try:
            images.check(item, limits.max_image_bytes)
        except images.InvalidImage as error:
            raise BadRequest(f"'{name}[{position}]' {error}.") from None
    return value


def texts(value: Any, name: str, limits: Limits) -> str | list[str]:
    found = [value] if isinstance(value, str) else value
    if not isinstance(found, list) or not all(isinstance(item, str) for item in found):
        raise BadRequest(f"'{name}' must be a string or a list of strings.")
    if len(found) > limits.max_embed_inputs:
        raise BadRequest(f"'{name}' takes at most {limits.max_embed_inputs} strings.")
    return value  # type: ignore[no-any-return]


def refused(value: Any, name: str, _limits: Limits) -> None:
    """Refuse what would run the operator's template engine or step around its system prompt."""
    if value:
        raise BadRequest(f"'{name}' is not accepted by this gateway.")


def each(rules: Mapping[str, Rule]) -> Rule:
    """Return a rule for a list of objects, each by the same rules."""

    def rule(value: Any, name: str, limits: Limits) -> list[dict[str, Any]]:
        if not isinstance(value, list):
            raise BadRequest(f"'{name}' must be a list.")
        return [apply(rules, item, f"{name}[{i}].", limits) for i, item in enumerate(value)]

    return rule


def nested(rules: Mapping[str, Rule]) -> Rule:
    """Return a rule for one object."""
    return lambda value, name, limits: apply(rules, value, f"{name}.", limits)


def role(value: Any, name: str, limits: Limits) -> str:
    found = text(value, name, limits).lower()
    if found not in ROLES:
        raise BadRequest(f"'{name}' must be one of {', '.join(ROLES)}.")
    return found


def arguments(value: Any, name: str, limits: Limits) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise BadRequest(f"'{name}' must be an object.")
    return shallow(value, name, limits)  # type: ignore[no-any-return]


# --- The table -------------------------------------------------------------------------------

OPTIONS: dict[str, Rule] = {
    "num_predict": whole(-(2**31), 2**31),
    "temperature": number(0.0, 2.0),
    "top_k": whole(0, 1000),
    "top_p": number(0.0, 1.0),
    "min_p": number(0.0, 1.0),
    "typical_p": number(0.0, 1.0),
    "repeat_last_n": whole(-1, 4096),
    "repeat_penalty": number(0.0, 10.0),
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
        "dimensions": whole(1, 100_000),
        "options": nested({}),
    },
}

DROPPED = frozenset(
    """model name stream keep_alive shift prompt insecure username password verbose
    _debug_render_only num_ctx num_batch num_gpu main_gpu num_thread use_mmap num_keep
    draft_num_predict""".split()  # noqa: SIM905
)

KNOWN = DROPPED | set(OPTIONS) | set(CALL) | set(MESSAGE) | set(TOOL)
KNOWN |= {name for rules in TABLE.values() for name in rules}
KNOWN |= {"description", "parameters"}
