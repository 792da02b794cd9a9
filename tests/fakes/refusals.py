"""The requests that Ollama rejects, with its statuses and messages."""

import json
from typing import Any

from tests.fakes.kinds import CONTEXT, FULL_PREFIX, Kind, full_name
from tests.fakes.script import Raw, Step, reply

Script = list[Step]
Body = dict[str, Any]

INTEGERS = ("num_predict", "num_ctx", "num_keep", "top_k", "seed", "repeat_last_n", "num_batch")
NUMBERS = ("temperature", "top_p", "min_p", "repeat_penalty", "presence_penalty")
THOUGHT = ("low", "medium", "high", "max")
BUSY = "server busy, please try again.  maximum pending requests exceeded"
TOO_LONG_TO_EMBED = "the input length exceeds the context length"
NOT_TRUNCATED = "input exceeds maximum context length and cannot be truncated further"
SCHEMA = "JSON schema conversion failed:\nUnrecognized schema: "
NATIVE_SCHEMA = "Unable to generate parser for this template. Automatic parser generation failed: "
NO_EMBEDDINGS = "This server does not support embeddings. Start it with `--embeddings`"
IMAGES = "Multimodal data provided, but model does not support multimodal requests."
NATIVE_IMAGES = (
    "image input is not supported - hint: if this is unexpected, you may need to provide the mmproj"
)


def error(status: int, text: str) -> Script:
    return reply({"error": text}, status)


def nested(status: int, message: str, kind: str = "invalid_request_error", **more: Any) -> Script:
    """An error of llama-server, whose JSON is a string in Ollama's."""
    inner = {"code": status, "message": message, "type": kind, **more}
    return error(status, json.dumps({"error": inner}, separators=(",", ":")))


def text_of(script: Script) -> str:
    """The message of a rejection."""
    [_head, body] = script
    assert isinstance(body, Raw)
    return str(json.loads(body.data)["error"])


def missing(name: str) -> Script:
    return error(404, f"model '{name}' not found")


def missing_to_embed(name: str) -> Script:
    return error(404, f'model "{name}" not found, try pulling it first')


def too_long(tokens: int) -> Script:
    return nested(
        400,
        f"request ({tokens} tokens) exceeds the available context size ({CONTEXT} tokens), "
        "try increasing it",
        "exceed_context_size_error",
        n_prompt_tokens=tokens,
        n_ctx=CONTEXT,
    )


def bad_schema(kind: Kind) -> Script:
    if kind.native:
        return nested(400, f"{NATIVE_SCHEMA}{SCHEMA}")
    return nested(400, SCHEMA)


def is_bad_schema(body: Body) -> bool:
    schema = body.get("format")
    return isinstance(schema, dict) and schema.get("type") == "nonsuch"


def of_writing(path: str, body: Body, name: str) -> Script | None:
    """Check a request to generate, before its prompt is processed."""
    kind, verb = Kind(full_name(name)), path.rsplit("/", 1)[-1]
    top = body.get("top_logprobs")
    if isinstance(top, int) and not 0 <= top <= 20:
        return error(400, "top_logprobs must be between 0 and 20")
    if kind.embeds:
        return error(400, f'"{name}" does not support {verb}')
    think = body.get("think")
    if isinstance(think, str) and think not in THOUGHT:
        return error(
            400, f'invalid think value: "{think}" (must be "high", "medium", "low", true, or false)'
        )
    if think and not kind.thinking:
        return error(400, f'"{name}" does not support thinking')
    if body.get("tools") and not kind.tools:
        return error(400, f"{FULL_PREFIX}{full_name(name)} does not support tools")
    if body.get("suffix") and kind.native:
        return error(400, f"{FULL_PREFIX}{full_name(name)} does not support insert")
    if body.get("raw") and any(body.get(field) for field in ("template", "system", "context")):
        return error(400, "raw mode does not support template, system, or context")
    return _of_messages(body) or _of_format(body) or _of_options(body)


def _of_messages(body: Body) -> Script | None:
    for message in body.get("messages") or []:
        if not isinstance(message.get("content", ""), str):
            return error(400, "json: cannot unmarshal array into Go struct field .messages.content")
    return None


def _of_format(body: Body) -> Script | None:
    found = body.get("format")
    if found in (None, "", "json") or isinstance(found, dict):
        return None
    text = f'invalid format: {json.dumps(found)}; expected "json" or a valid JSON Schema object'
    return error(500, text)


def _of_options(body: Body) -> Script | None:
    options = body.get("options") or {}
    for name in INTEGERS:
        if not _is_number(options.get(name)):
            return error(500, f'option "{name}" must be of type integer')
    for name in NUMBERS:
        if not _is_number(options.get(name)):
            return error(500, f'option "{name}" must be of type float32')
    if (options.get("repeat_penalty") or 1) <= 0 or options.get("repeat_penalty") == 0:
        return nested(400, "penalty_repeat must be finite and greater than 0")
    if (options.get("repeat_last_n") or 0) < 0:
        return nested(400, "penalty_last_n must be between 0 and 2147483647")
    return None


def _is_number(value: Any) -> bool:
    return value is None or (isinstance(value, (int, float)) and not isinstance(value, bool))


def of_images(body: Body, kind: Kind) -> Script | None:
    """A rendered model that does not see says so, a native one fails."""
    if kind.vision or not (
        body.get("images") or any(m.get("images") for m in body.get("messages") or [])
    ):
        return None
    return nested(500, NATIVE_IMAGES, "server_error") if kind.native else nested(400, IMAGES)


def of_length(body: Body, kind: Kind, tokens: int) -> Script | None:
    """A prompt beyond the context is cut, unless it may not be, or cannot: native mode drops whole
    messages only."""
    if tokens <= CONTEXT:
        return None
    if body.get("shift") is False:
        return error(400, "the prompt is longer than the context length, and shifting is off")
    is_one = len(body.get("messages") or []) == 1
    if body.get("truncate") is False or (kind.native and is_one):
        return too_long(tokens)
    return None
