"""What a value of a request must look like to go upstream. Pure.

A rule takes a value, its name and the limits, and returns what may be sent; it raises BadRequest
naming the field. Numbers are clamped to their documented range; all else that does not fit is
refused.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from gateway.errors import BadRequest
from gateway.validation import images, schemas
from gateway.validation.schemas import SchemaBounds

Rule = Callable[[Any, str, "Limits"], Any]

MAX_DEPTH = 64
MAX_STOPS, MAX_STOP_BYTES = 8, 128
ROLES = ("system", "user", "assistant", "tool")
EFFORTS = ("low", "medium", "high", "max")

# Every name the model server reads anywhere in a request, whether it may come from a client or not,
# and the names of other APIs that are refused.
KNOWN = frozenset(
    """model name stream prompt suffix system images raw template context format think truncate
    logprobs top_logprobs options messages tools input dimensions keep_alive shift insecure
    username password verbose _debug_render_only
    role content thinking tool_calls tool_name tool_call_id id function index arguments
    type description parameters
    num_predict temperature top_k top_p min_p typical_p repeat_last_n repeat_penalty
    presence_penalty frequency_penalty seed stop num_keep
    max_tokens max_completion_tokens max_output_tokens max_new_tokens n best_of
    num_ctx num_batch num_gpu main_gpu num_thread use_mmap draft_num_predict""".split()  # noqa: SIM905
)


@dataclass(frozen=True, slots=True)
class Limits:
    """How much one request may ask for. Sizes are bytes, completions tokens."""

    max_prompt_bytes: int
    max_images: int
    max_image_bytes: int
    max_embed_inputs: int
    default_completion_tokens: int
    max_completion_tokens: int
    schema: SchemaBounds = field(default_factory=SchemaBounds)


# --- Objects and lists of them ------------------------------------------------------------------


def apply(rules: Mapping[str, Rule], fields: Any, where: str, limits: Limits) -> dict[str, Any]:
    """Return the fields that have a rule, each checked by it; null counts as absent."""
    if not isinstance(fields, dict):
        raise BadRequest(f"'{where.rstrip('.')}' must be an object.")
    reject_lookalikes(fields, where)
    asked = {name: rule for name, rule in rules.items() if fields.get(name) is not None}
    checked = {name: rule(fields[name], where + name, limits) for name, rule in asked.items()}
    return {name: value for name, value in checked.items() if value is not None}


def reject_lookalikes(fields: Mapping[str, Any], where: str = "") -> None:
    """Raise BadRequest for a key that is a known one but for its case or a folded letter."""
    for key in fields:
        folded = key.casefold()
        if key != folded and folded in KNOWN:
            raise BadRequest(f"Unknown key {json.dumps(where + key)}: did you mean '{folded}'?")


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


# --- Values -------------------------------------------------------------------------------------


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


def positive(high: float) -> Rule:
    """Return a rule that takes a number above zero, at most `high`. One that is not is dropped, as
    if it had not been sent: the model server refuses it, and clients send it for "none"."""

    def rule(value: Any, name: str, _limits: Limits) -> float | None:
        found = _numeric(value, name)
        return min(found, high) if found > 0 else None

    return rule


def positive_whole(high: int) -> Rule:
    """Return a rule as `positive`, for whole numbers."""

    def rule(value: Any, name: str, _limits: Limits) -> int | None:
        found = int(_numeric(value, name))
        return min(found, high) if found > 0 else None

    return rule


def last_tokens(high: int) -> Rule:
    """Return a rule for how many tokens back something looks. Negative means all of them for
    clients, and nothing for the model server, which refuses it."""

    def rule(value: Any, name: str, _limits: Limits) -> int:
        found = int(_numeric(value, name))
        return high if found < 0 else min(found, high)

    return rule


def _numeric(value: Any, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise BadRequest(f"'{name}' must be a number.")
    return value


def stops(value: Any, name: str, _limits: Limits) -> list[str]:
    found = [value] if isinstance(value, str) else value
    if not isinstance(found, list) or not all(isinstance(stop, str) for stop in found):
        raise BadRequest(f"'{name}' must be a list of strings.")
    if len(found) > MAX_STOPS or any(utf8_bytes(stop) > MAX_STOP_BYTES for stop in found):
        raise BadRequest(f"'{name}' takes at most {MAX_STOPS} strings of {MAX_STOP_BYTES} bytes.")
    return found


def think(value: Any, name: str, _limits: Limits) -> bool | str:
    if not isinstance(value, bool) and value not in EFFORTS:
        raise BadRequest(f"'{name}' must be true, false or one of {', '.join(EFFORTS)}.")
    return value  # type: ignore[no-any-return]


def output_format(value: Any, name: str, limits: Limits) -> str | dict[str, Any] | None:
    if value == "":
        return None
    if value == "json":
        return "json"
    if not isinstance(value, dict):
        raise BadRequest(f"'{name}' must be \"json\" or a JSON schema.")
    schemas.check(value, limits.schema)
    return value


def shallow(value: Any, name: str, _limits: Limits) -> Any:
    """Accept any JSON but one that is nested so deeply that parsing it is the attack."""
    require_shallow(value, name)
    return value


def require_shallow(value: Any, name: str) -> None:
    """Raise BadRequest for JSON with more than MAX_DEPTH levels. It does not recurse itself."""
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [inner for outer in level for inner in _children(outer)]
        if not level:
            return
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


def instead(name_here: str) -> Rule:
    """Return a rule that refuses another API's name for what bounds the price of a response.

    Dropped like other unknown fields, it would let the response be as long, and cost as much, as
    the default allows.
    """

    def rule(value: Any, name: str, _limits: Limits) -> None:
        raise BadRequest(f"'{name}' has no effect here; use '{name_here}'.")

    return rule


def only_one(value: Any, name: str, _limits: Limits) -> None:
    """Refuse to be asked for several responses: one is given, and one is charged."""
    if value != 1:
        raise BadRequest(f"'{name}' must be 1: a request has one response here.")


def role(value: Any, name: str, limits: Limits) -> str:
    found = text(value, name, limits).lower()
    if found not in ROLES:
        raise BadRequest(f"'{name}' must be one of {', '.join(ROLES)}.")
    return found


def arguments(value: Any, name: str, limits: Limits) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise BadRequest(f"'{name}' must be an object.")
    return shallow(value, name, limits)  # type: ignore[no-any-return]


def utf8_bytes(value: str) -> int:
    return len(value.encode("utf-8", "surrogatepass"))
