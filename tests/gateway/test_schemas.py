"""A schema that would stop the model for everybody is refused, and a harmless one passes."""

import time
from collections.abc import Iterator
from typing import Any

import pytest

from gateway.errors import BadRequest
from gateway.validation import pattern_counts, patterns, schemas
from gateway.validation.pattern_counts import Work
from gateway.validation.patterns import BadPattern
from gateway.validation.schemas import SchemaBounds
from tests.fakes.ollama import FakeOllama
from tests.harness.callers import Caller

# All letters but one: most words of a vocabulary begin so and then do not match, which is what
# makes llama.cpp try every way.
LETTERS = "[a-rt-zA-Z]"

# Measured with llama.cpp: at most 0.2 s for each token.
HARMLESS = [
    "^(a?b?c?)*$",
    "^((a?b?){0,3})*$",
    "^((a*)*)*$",
    "^((a+)+)+$",
    "^((((a{1,20}){1,20}){1,20}){1,20})$",
    "^(ab?c?d?){0,100}$",
    "^([a-z]{0,10} ){0,100}$",
    "^(x{0,100}y){0,100}$",
    "^a{0,500}$",
    "^(a|aa|aaa){0,50}$",
    r"^([a-z]{1,64}\.){1,20}$",
    # What people write.
    "^(a?){0,4}$",
    "^(GET|POST|PUT|PATCH)$",
    r"^\d{4}-\d{2}-\d{2}$",
    "^#?([a-f0-9]{6}|[a-f0-9]{3})$",
    "^[0-9a-f]{8}-([0-9a-f]{4}-){3}[0-9a-f]{12}$",
    "^([0-9A-F]{2}[:-]){5}[0-9A-F]{2}$",
    "^[A-Z]{2}[0-9]{2}([A-Z0-9]{4}){1,7}[A-Z0-9]{1,4}$",
    r"^[\w.+-]+@[\w-]+\.[\w.-]+$",
    r"^(https?://)?[a-z0-9.-]+(:[0-9]{1,5})?(/[^\s]*)?$",
    r"^([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\.)+[a-z]{2,}$",
    r"^((25[0-5]|2[0-4]\d|1\d\d|[1-9]?\d)\.){3}(25[0-5]|2[0-4]\d|1\d\d|[1-9]?\d)$",
    (
        r"^(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)(?:-((?:0|[1-9]\d*|\d*[a-zA-Z-][0-9a-zA-Z-]*)"
        r"(?:\.(?:0|[1-9]\d*|\d*[a-zA-Z-][0-9a-zA-Z-]*))*))?(?:\+([0-9a-zA-Z-]+(?:\.[0-9a-zA-Z-]+)*))?$"
    ),
    "^[A-Za-z]+([ '-][A-Za-z]+)*$",
    "^([A-Za-z]+_?)+$",
    "^.*foo.*$",
    r"^\u0041\x42\t[^\]\\-]+?$",
]

# Each takes llama.cpp seconds for a token, or minutes, and all who share the model with it.
KILLERS = [
    "^((((a{0,20}){0,20}){0,20}){0,20})$",
    "^((((a{0,5}){0,5}){0,5}){0,5})$",
    "^(((a{0,20}){0,20}){0,20})$",
    "^(?:(?:(?:a{0,20}){0,20}){0,20})$",
    "^(a?b?c?){0,50}$",
    "^(a?b?c?){50}$",
    "^(a?b?c?){50,}$",
    "^(a?b?c?){0,50}?$",
    "^((a|b){0,20}(c|d){0,20}){0,20}$",
    "^((a?b?)*){0,30}$",
    "^(a?){0,100}$",
    "^(a?){0,5}$",
    "^(a*b*){0,30}$",
    "^(a*?b*?){0,30}$",
    "^(|a|b){0,30}$",
    "^(a{0,3}){0,30}$",
    "^([a-z]?){0,20}$",
    r"^(\s?){0,20}$",
    r"^(\w?\W?){0,20}$",
    "^(.?){0,20}$",
    "^x(a?){0,100}y$",
    "^(x|(a?){0,100})$",
    "(a?){0,100}",
    # Repetitions that llama.cpp reads as optional, or that reach further than they seem to.
    "^(a+?){0,50}$",
    r"^(-\-?){0,30}$",
    # Small bounds, nested.
    "^((((a{0,4}){0,4}){0,4}){0,4})$",
    "^(((((a{0,4}){0,4}){0,4}){0,4}){0,4})$",
    f"^((({LETTERS}?{LETTERS}?){{0,3}})*)$",
    f"^((({LETTERS}{{0,4}}){{0,4}}){{0,4}}){{0,4}}$",
    # No repetition at all, and bodies that always match something.
    "^" + "-?" * 40 + "$",
    "^" + "a?b?c?" * 50 + "$",
    "^" + "-{1,3}" * 20 + "$",
    "^(-{1,3}){1,20}$",
    "^(-{1,7}){0,8}$",
    "^(-|--|---){0,20}$",
    "^( | {2}| {3}){1,20}$",
    f"^(({LETTERS}+)+)+$",
    f"^((({LETTERS}{{1,20}}){{1,20}}){{1,20}})$",
    "^(" + "|".join(f"word{n}" for n in range(600)) + ")$",
    "^" + "(x|y)?" * 300 + "$",
]

UNREADABLE = {
    "^(?=a)b$": "lookaround",
    "^(?!a)b$": "lookaround",
    "^(?<=a)b$": "lookaround",
    "^(?<name>a)$": "named groups",
    r"^(a)\1$": r"'\\1' is not supported",
    r"^\p{L}$": r"'\\p' is not supported",
    r"^\bword$": r"'\\b' is not supported",
    "^a**$": "a repetition of a repetition",
    "^a{0,4}{0,4}$": "a repetition of a repetition",
    "^a{,5}$": "must be escaped",
    "^a{2,1}$": "wrong order",
    "^*$": "without something to repeat",
    "^(a$": r"'\(' without '\)'",
    "^a)$": r"'\)' without '\('",
    "^[a$": "ends too early",
    "^[]$": "an empty class",
    "^[z-a]$": "a range whose ends",
    "^a\\": "ends too early",
    "^" + "(" * 40 + "a" + ")" * 40 + "$": "nested too deeply",
    "^" + "a" * 3000 + "$": "too long",
}


def of(pattern: str) -> dict[str, Any]:
    return {"type": "object", "properties": {"code": {"type": "string", "pattern": pattern}}}


def check(schema: dict[str, Any], **bounds: int) -> None:
    schemas.check(schema, SchemaBounds(**bounds))


@pytest.mark.parametrize("pattern", HARMLESS)
def test_a_harmless_pattern_passes(pattern: str) -> None:
    check(of(pattern))


@pytest.mark.parametrize("pattern", KILLERS, ids=lambda pattern: pattern[:60])
def test_a_pattern_that_stops_the_model_is_refused_with_its_place(pattern: str) -> None:
    with pytest.raises(BadRequest, match=r"at '/properties/code/pattern': the pattern"):
        check(of(pattern))


@pytest.mark.parametrize("pattern", UNREADABLE, ids=lambda pattern: pattern[:20])
def test_a_pattern_that_cannot_be_read_is_refused_with_the_reason(pattern: str) -> None:
    with pytest.raises(BadRequest, match=UNREADABLE[pattern]):
        check(of(pattern))


def test_no_pattern_is_much_work() -> None:
    """The worst that is still counted, and what gives up in time, each well under a second."""
    began = time.perf_counter()
    for pattern in [*KILLERS, "^" + "[a-z]?" * 1900 + "$", "^(" + "a|" * 15_000 + "b)*$"]:
        with pytest.raises(BadRequest):
            check(of(pattern))
    assert time.perf_counter() - began < 10


# --- Where a pattern may stand --------------------------------------------------------------------

BAD = {"type": "string", "pattern": "^(a?){0,100}$"}
PLACES: dict[str, dict[str, Any]] = {
    "/pattern": BAD,
    "/properties/a~1b/pattern": {"properties": {"a/b": BAD}},
    "/additionalProperties/pattern": {"additionalProperties": BAD},
    "/patternProperties/^(a?){0,100}$": {"patternProperties": {"^(a?){0,100}$": {}}},
    "/propertyNames/pattern": {"propertyNames": BAD},
    "/items/pattern": {"type": "array", "items": BAD},
    "/prefixItems/1/pattern": {"prefixItems": [{}, BAD]},
    "/$defs/x/pattern": {"$defs": {"x": BAD}, "$ref": "#/$defs/x"},
    "/definitions/x/pattern": {"definitions": {"x": BAD}},
    "/anyOf/0/pattern": {"anyOf": [BAD]},
    "/oneOf/1/pattern": {"oneOf": [{}, BAD]},
    "/allOf/0/not/pattern": {"allOf": [{"not": BAD}]},
    "/if/pattern": {"if": BAD},
    "/x-anything/deep/pattern": {"x-anything": {"deep": BAD}, "$ref": "#/x-anything/deep"},
}


@pytest.mark.parametrize("place", PLACES)
def test_a_pattern_is_found_wherever_it_stands(place: str) -> None:
    with pytest.raises(BadRequest) as refusal:
        check(PLACES[place])
    assert f"at '{place}'" in refusal.value.message


def test_a_property_may_be_called_pattern_or_enum() -> None:
    check({"properties": {"pattern": {"type": "string"}, "enum": {"type": "integer"}}})


# --- Counts ---------------------------------------------------------------------------------------


def defs(levels: int, width: int, wrap: bool) -> dict[str, Any]:
    """Return a schema whose branches multiply from level to level."""
    found: dict[str, Any] = {f"l{levels}": {"const": "x"}}
    for level in range(levels):
        target: dict[str, Any] = {"$ref": f"#/$defs/l{level + 1}"}
        target = {"type": "array", "items": target} if wrap else target
        found[f"l{level}"] = {"anyOf": [target] * width}
    return {"$defs": found, "$ref": "#/$defs/l0"}


TOO_MUCH: dict[str, tuple[dict[str, Any], str]] = {
    "enum": ({"enum": list(range(501))}, "'/enum': .* 500 enum values"),
    "enums": ({"anyOf": [{"enum": list(range(300))}] * 2}, "'/anyOf/1/enum': .* 500 enum values"),
    "anyOf": ({"anyOf": [{"type": "object"}] * 101}, "'/anyOf': .* 100 branches"),
    "oneOf": ({"oneOf": [{}] * 101}, "'/oneOf': .* 100 branches"),
    "allOf": ({"allOf": [{}] * 101}, "'/allOf': .* 100 branches"),
    "branches": ({"anyOf": [{"oneOf": [{}] * 10}] * 10}, "100 branches"),
    "types": ({"type": ["string"] * 101}, "'/type': .* 100 branches"),
    "optional": (
        {"properties": {f"p{n}": {} for n in range(301)}},
        "'/properties': .* 300 optional properties",
    ),
    "references": (defs(8, 12, wrap=False), "multiply"),
    "arrays": (defs(8, 10, wrap=True), "multiply"),
    "patterns": (
        {"anyOf": [{"$ref": "#/$defs/x"}] * 50, "$defs": {"x": {"pattern": f"^({LETTERS}+)+$"}}},
        "multiply",
    ),
    "bytes": ({"description": "x" * 33_000}, "larger than 32,768 bytes"),
    "chain": (
        {f"d{n}": {"items": {"$ref": f"#/d{n + 1}"}} for n in range(200)} | {"$ref": "#/d0"},
        "through too many others",
    ),
}


@pytest.mark.parametrize("name", TOO_MUCH)
def test_a_schema_with_too_much_of_something_is_refused(name: str) -> None:
    schema, reason = TOO_MUCH[name]
    with pytest.raises(BadRequest, match=reason):
        check(schema)


def test_just_enough_passes() -> None:
    check({"enum": list(range(500))})
    check({"anyOf": [{"type": "object", "properties": {"kind": {"const": n}}} for n in range(100)]})
    check({"properties": {f"p{n}": {"type": "integer"} for n in range(300)}})
    names = [f"p{n}" for n in range(1000)]
    check({"properties": {name: {} for name in names}, "required": names})


def tree() -> dict[str, Any]:
    """Return the schema of an expression, which holds expressions."""
    kinds = [f"op{n}" for n in range(20)]
    node = {"$ref": "#/$defs/node"}
    branches = [
        {
            "type": "object",
            "properties": {"op": {"const": k}, "of": {"type": "array", "items": node}},
        }
        for k in kinds
    ]
    return {"$defs": {"node": {"anyOf": branches}}, "$ref": "#/$defs/node"}


@pytest.mark.parametrize(
    "schema",
    [
        {},
        {"$ref": "#"},
        {"$ref": "#/nowhere", "items": [{"$ref": "https://example.org/x"}]},
        {"type": "array", "items": {"type": "integer"}, "maxItems": 1000},
        {"type": "integer", "minimum": -(2**31), "maximum": 2**31},
        {"type": ["string", "null"], "enum": ["a", None]},
        tree(),
    ],
    ids=["empty", "itself", "lost", "items", "integers", "nullable", "tree"],
)
def test_a_harmless_schema_passes(schema: dict[str, Any]) -> None:
    check(schema)


def test_the_bounds_are_settings(
    alice: Caller, ollama: FakeOllama, priced: Any, settings: Any
) -> None:
    asked = {"model": "llama3", "prompt": "hi", "format": {"enum": ["a", "b", "c"]}}
    assert alice.post("/generate", **asked).status_code == 200
    settings.MAX_SCHEMA_ENUM_VALUES = 2
    assert alice.post("/generate", **asked).status_code == 400


# --- The parser -----------------------------------------------------------------------------------


def chars(pattern: str) -> Any:
    """Return the ranges of a pattern of one character."""
    tree: Any = patterns.read(pattern)
    [part] = tree.parts
    return part.ranges


@pytest.mark.parametrize(
    ("pattern", "inside", "outside"),
    [
        ("a", "a", "b"),
        (r"\.", ".", "a"),
        (r"\d", "09", "a/:"),
        (r"\D", "a", "5"),
        (r"\s", " \t\u2003", "x"),
        (r"[\w-]", "a_-9", "."),
        (r"[^a-c]", "d", "abc"),
        (r"[\]\\^]", "]\\^", "["),
        (r"[a\-z]", "a-z", "m"),
        (r"[-a]", "-a", "b"),
        (r"\x41", "A", "x"),
        (r"\u00e9", "é", "u"),
        (".", "a¹", "\n\u2028"),
    ],
)
def test_a_class_holds_its_characters(pattern: str, inside: str, outside: str) -> None:
    def holds(char: str) -> bool:
        return any(low <= ord(char) <= high for low, high in chars(pattern))

    assert all(map(holds, inside)) and not any(map(holds, outside))


def ways_of(pattern: str) -> int:
    return pattern_counts.ways(patterns.read(pattern), 1000, Work(100_000))[1]


def test_ways_are_counted() -> None:
    assert ways_of("^[ab]*$") == 1
    assert ways_of("^a?a?$") == 2
    assert ways_of("^(-+)+$") > 1000


def test_work_is_bounded() -> None:
    with pytest.raises(BadPattern, match="too long or too complicated"):
        pattern_counts.ways(patterns.read("a?" * 50), 10**9, Work(1000))


# --- Every family ---------------------------------------------------------------------------------

MESSAGES = [{"role": "user", "content": "hi"}]


def requests_with(schema: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    named = {"name": "n", "schema": schema}
    yield "/generate", {"prompt": "hi", "format": schema}
    yield "/chat", {"messages": MESSAGES, "format": schema}
    yield "/api/generate", {"prompt": "hi", "format": schema, "stream": False}
    yield "/api/chat", {"messages": MESSAGES, "format": schema}
    openai = {"type": "json_schema", "json_schema": named}
    yield "/v1/chat/completions", {"messages": MESSAGES, "response_format": openai}
    text = {"format": {"type": "json_schema", **named}}
    yield "/v1/responses", {"input": "hi", "text": text}
    anthropic = {"format": {"type": "json_schema", "schema": schema}}
    yield "/v1/messages", {"messages": MESSAGES, "max_tokens": 9, "output_config": anthropic}


def test_forty_killers_are_refused_in_every_family_and_a_neighbour_is_served(
    alice: Caller, charlie: Caller, ollama: FakeOllama, priced: Any
) -> None:
    assert len(KILLERS) >= 40
    for number, pattern in enumerate(KILLERS):
        for path, body in requests_with(of(pattern)):
            answer = alice.post(path, model="llama3", **body)
            assert answer.status_code == 400, (path, pattern)
            assert "/properties/code/pattern" in answer.content.decode(), (path, pattern)
        if number % 10 == 0:
            assert charlie.post("/generate", model="llama3", prompt="hi").status_code == 200
    assert len(ollama.requests) == 4
    assert all(request.json["prompt"] == "hi" for request in ollama.requests)


def test_a_harmless_schema_goes_upstream_in_every_family(
    alice: Caller, ollama: FakeOllama, priced: Any
) -> None:
    schema = of("^[A-Z]{3}-[0-9]{4}$")
    for path, body in requests_with(schema):
        answer = alice.post(path, model="llama3", **body)
        b"".join(answer) if answer.streaming else answer.content
        assert answer.status_code == 200 and ollama.requests[-1].json["format"] == schema, path
