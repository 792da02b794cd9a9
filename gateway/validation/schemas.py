"""Refuse a JSON schema that would stop the model for everybody. Pure.

llama.cpp compiles a schema to a grammar and follows it before each token, in the one thread that
serves all customers of a model. What is bounded here is what was measured to take seconds there:
ambiguous patterns, long enums, many branches, and many optional properties.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from gateway.errors import BadRequest
from gateway.validation import pattern_counts, patterns
from gateway.validation.patterns import BadPattern

BRANCHES = ("anyOf", "oneOf", "allOf")
# In how many ways one token may match. Two readings of each letter of a word pass, three do not.
MAX_WAYS = 70_000
# How much work the patterns of one schema may be to the gateway itself: about 0.1 s.
MAX_WORK = 200_000
MAX_REFERENCES = 64
LONGEST_PLACE = 200


@dataclass(frozen=True, slots=True)
class SchemaBounds:
    """How much one schema may ask for. The defaults are those of the settings."""

    max_bytes: int = 32 * 1024
    max_depth: int = 64
    max_enum_values: int = 500
    max_branches: int = 100
    max_optional_properties: int = 300
    max_empty_repetitions: int = 4


def check(schema: dict[str, Any], bounds: SchemaBounds) -> None:
    """Raise BadRequest, naming the place and the reason, for a schema beyond the bounds."""
    # First, so that nothing large is walked.
    if _size(schema) > bounds.max_bytes:
        raise refused("", f"it is larger than {bounds.max_bytes:,} bytes")
    nodes = list(_walk(schema, bounds.max_depth))
    _check_counts(nodes, bounds)
    meter = _Meter(schema, bounds)
    for place, node in nodes:
        meter.read_patterns(place, node)
    for place, node in nodes:
        meter.check_choices(place, node)


def refused(place: str, reason: str) -> BadRequest:
    shown = place if len(place) <= LONGEST_PLACE else f"{place[:LONGEST_PLACE]}…"
    return BadRequest(f"The JSON schema is refused at '{shown or '/'}': {reason}.")


def _size(schema: dict[str, Any]) -> int:
    try:
        written = json.dumps(schema, separators=(",", ":"), ensure_ascii=False)
    except RecursionError:
        raise refused("", "it is nested too deeply") from None
    return len(written.encode("utf-8", "surrogatepass"))


def _walk(schema: dict[str, Any], max_depth: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield every object in a schema, with its JSON pointer. Each may be one, whatever it stands
    under: a `$ref` can lead anywhere."""
    level: list[tuple[str, Any]] = [("", schema)]
    for _ in range(max_depth):
        inner: list[tuple[str, Any]] = []
        for place, value in level:
            if isinstance(value, dict):
                yield place, value
            inner += ((f"{place}/{_escaped(key)}", child) for key, child in _children(value))
        if not inner:
            return
        level = inner
    raise refused(level[0][0], f"it is nested more than {max_depth} levels deep")


def _children(value: Any) -> list[tuple[str, Any]]:
    if isinstance(value, dict):
        return list(value.items())
    return [(str(i), item) for i, item in enumerate(value)] if isinstance(value, list) else []


def _escaped(key: str) -> str:
    return key[:64].replace("~", "~0").replace("/", "~1")


# --- Counts ---------------------------------------------------------------------------------------


def _check_counts(nodes: list[tuple[str, dict[str, Any]]], bounds: SchemaBounds) -> None:
    values = branches = 0
    for place, node in nodes:
        values += _length(node.get("enum"))
        if values > bounds.max_enum_values:
            reason = f"a schema may have at most {bounds.max_enum_values} enum values in all"
            raise refused(f"{place}/enum", reason)
        for name in (*BRANCHES, "type"):
            # A list of types is a branch for each.
            branches += _length(node.get(name))
            if branches > bounds.max_branches:
                reason = f"a schema may have at most {bounds.max_branches} branches in all"
                raise refused(f"{place}/{name}", f"{reason} (anyOf, oneOf, allOf, types)")
        if _optional(node) > bounds.max_optional_properties:
            reason = (
                f"an object may have at most {bounds.max_optional_properties} optional properties"
            )
            raise refused(f"{place}/properties", reason)


def _length(value: Any) -> int:
    return len(value) if isinstance(value, list) else 0


def _optional(node: dict[str, Any]) -> int:
    properties, required = node.get("properties"), node.get("required")
    if not isinstance(properties, dict):
        return 0
    named = (
        {name for name in required if isinstance(name, str)}
        if isinstance(required, list)
        else set()
    )
    return len(properties.keys() - named)


# --- Patterns, and what references multiply -------------------------------------------------------


@dataclass(slots=True)
class _Meter:
    """What a schema's patterns cost, and its branches, through all references."""

    schema: dict[str, Any]
    bounds: SchemaBounds
    work: pattern_counts.Work = field(default_factory=lambda: pattern_counts.Work(MAX_WORK))
    # The ways of a node's own pattern; the choices of a node, None while they are being counted.
    _ways: dict[int, int] = field(default_factory=dict)
    _counted: dict[int, tuple[int, int] | None] = field(default_factory=dict)

    def read_patterns(self, place: str, node: dict[str, Any]) -> None:
        pattern = node.get("pattern")
        if isinstance(pattern, str):
            self._ways[id(node)] = self._read(f"{place}/pattern", pattern)
        keyed = node.get("patternProperties")
        for key in keyed if isinstance(keyed, dict) else ():
            self._read(f"{place}/patternProperties/{_escaped(key)}", key)

    def _read(self, place: str, pattern: str) -> int:
        try:
            tree = patterns.read(pattern)
            if patterns.empty_repetition(tree, self.bounds.max_empty_repetitions):
                raise BadPattern(
                    "the pattern repeats something that can match nothing more than "
                    f"{self.bounds.max_empty_repetitions} times"
                )
            following, ways = pattern_counts.ways(tree, MAX_WAYS, self.work)
        except BadPattern as error:
            raise refused(place, str(error)) from None
        if ways > MAX_WAYS:
            raise refused(place, "the pattern can match the same text in too many ways")
        if following > self.bounds.max_enum_values:
            raise refused(place, "the pattern can go on in too many ways at one character")
        return ways

    def check_choices(self, place: str, node: dict[str, Any]) -> None:
        """Refuse a place where too much can come next, or where it can match in too many ways."""
        try:
            choices, ways = self._choices(node, MAX_REFERENCES)
        except RecursionError:
            raise refused(place, "its references lead through too many others") from None
        if choices > self.bounds.max_enum_values + self.bounds.max_branches or ways > MAX_WAYS:
            raise refused(place, "its branches multiply to too many at one place")

    def _choices(self, node: Any, references: int) -> tuple[int, int]:
        """Return how many things a node's text can begin with, and those with the ways of patterns.

        An array counts as its items: one token holds many opening brackets.
        """
        if not isinstance(node, dict):
            return 1, 1
        if id(node) in self._counted:
            return self._counted[id(node)] or (1, 1)
        self._counted[id(node)] = None
        counted = [self._choices(inner, references) for inner in self._beginnings(node)]
        counted += [
            self._choices(target, self._one_less(references)) for target in self._targets(node)
        ]
        own = _length(node.get("enum")) + _length(node.get("type"))
        choices = max(1, own + sum(each for each, _ways in counted))
        ways = max(1, own + sum(ways for _each, ways in counted)) * self._ways.get(id(node), 1)
        self._counted[id(node)] = choices, ways
        return choices, ways

    def _beginnings(self, node: dict[str, Any]) -> list[Any]:
        branches = [node[name] for name in BRANCHES if isinstance(node.get(name), list)]
        items = node.get("prefixItems") or node.get("items")
        first = items[:1] if isinstance(items, list) else [items] if items else []
        return [*(one for found in branches for one in found), *first]

    def _targets(self, node: dict[str, Any]) -> list[Any]:
        return [found] if (found := self._resolved(node.get("$ref"))) is not None else []

    def _one_less(self, references: int) -> int:
        if references == 0:
            raise RecursionError
        return references - 1

    def _resolved(self, reference: Any) -> Any:
        """Return what a reference within the schema leads to, None for any other."""
        if not isinstance(reference, str) or not reference.startswith("#"):
            return None
        found: Any = self.schema
        for part in reference.lstrip("#").strip("/").split("/") if reference != "#" else ():
            # llama.cpp takes a part as it is written, others unescape it.
            unescaped = part.replace("~1", "/").replace("~0", "~")
            children = dict(_children(found))
            found = children.get(part, children.get(unescaped))
        return found
