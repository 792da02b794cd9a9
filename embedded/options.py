"""Ollama's `options`, checked as Ollama checks them and turned into llama.cpp's sampling."""

from collections.abc import Callable
from typing import Any, TypeGuard

from embedded.engine import CONTEXT

INT_LIMIT = 2**31 - 1
FLOAT_LIMIT = 1e6


class Rejected(Exception):
    """The request is not valid: an HTTP status and a text for the client."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


def _integer(name: str, value: object) -> int:
    if not _is_number(value):
        raise _wrong(name, "of type integer")
    return int(max(-INT_LIMIT, min(INT_LIMIT, value)))


def _number(name: str, value: object) -> float:
    if not _is_number(value):
        raise _wrong(name, "of type float32")
    return float(max(-FLOAT_LIMIT, min(FLOAT_LIMIT, value)))


def _is_number(value: object) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _boolean(name: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise _wrong(name, "of type boolean")
    return value


def _strings(name: str, value: object) -> list[str]:
    if not isinstance(value, list):
        raise _wrong(name, "of type array")
    if not all(isinstance(item, str) for item in value):
        raise _wrong(name, "an array of strings")
    return [item for item in value if item]


def _wrong(name: str, kind: str) -> Rejected:
    # The mistake is the client's, but Ollama responds with 500.
    return Rejected(500, f'option "{name}" must be {kind}')


# Ollama's defaults where llama.cpp's own differ.
DEFAULTS: dict[str, Any] = {"temperature": 0.8, "top_k": 40, "top_p": 0.9, "min_p": 0.0}

CHECKS: dict[str, Callable[[str, object], Any]] = {
    "num_predict": _integer,
    "seed": _integer,
    "top_k": _integer,
    "repeat_last_n": _integer,
    "temperature": _number,
    "top_p": _number,
    "min_p": _number,
    "typical_p": _number,
    "repeat_penalty": _number,
    "presence_penalty": _number,
    "frequency_penalty": _number,
    "stop": _strings,
}

# Checked and then ignored: this engine is loaded once, with fixed settings.
FIXED: dict[str, Callable[[str, object], Any]] = {
    **dict.fromkeys(("num_ctx", "num_batch", "num_gpu", "main_gpu", "num_thread"), _integer),
    **dict.fromkeys(("num_keep", "draft_num_predict"), _integer),
    "use_mmap": _boolean,
}


def read_options(options: dict[str, Any]) -> dict[str, Any]:
    """Return llama.cpp's sampling settings; raise Rejected. Unknown options are ignored."""
    given = {name: value for name, value in options.items() if value is not None}
    for name in FIXED.keys() & given.keys():
        FIXED[name](name, given[name])
    requested = {name: CHECKS[name](name, given[name]) for name in CHECKS.keys() & given.keys()}
    sampling = DEFAULTS | requested
    sampling["n_predict"] = _max_tokens(sampling.pop("num_predict", -1))
    sampling["repeat_last_n"] = _window(sampling.get("repeat_last_n", 64))
    if sampling.get("seed", -1) < 0:
        sampling.pop("seed", None)
    return sampling


def _max_tokens(num_predict: int) -> int:
    """Return the most tokens to generate. Zero and less mean as many as the context holds."""
    return min(num_predict, CONTEXT) if num_predict > 0 else CONTEXT


def _window(repeat_last_n: int) -> int:
    if repeat_last_n < 0:
        raise Rejected(400, f"penalty_last_n must be between 0 and {INT_LIMIT}")
    return min(repeat_last_n, CONTEXT)
