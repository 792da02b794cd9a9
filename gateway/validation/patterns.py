"""Read the `pattern` of a JSON schema. Pure.

The part of ECMAScript's syntax that llama.cpp's grammars can follow is parsed; the rest is refused.
Where llama.cpp reads a pattern in another way than ECMAScript does, the tree holds both readings.
"""

import re
from dataclasses import dataclass
from typing import NoReturn

Ranges = tuple[tuple[int, int], ...]

LAST_CODE_POINT = 0x10FFFF
# Deeper groups than this are nobody's; parser and automaton are recursive.
MAX_GROUPS = 32

BRACES = re.compile(r"\{([0-9]{1,9})(?:(,)([0-9]{1,9})?)?\}")
DIGITS: Ranges = ((0x30, 0x39),)
WORD: Ranges = ((0x30, 0x39), (0x41, 0x5A), (0x5F, 0x5F), (0x61, 0x7A))
SPACE: Ranges = (
    (0x09, 0x0D), (0x20, 0x20), (0xA0, 0xA0), (0x1680, 0x1680), (0x2000, 0x200A),
    (0x2028, 0x2029), (0x202F, 0x202F), (0x205F, 0x205F), (0x3000, 0x3000), (0xFEFF, 0xFEFF),
)  # fmt: skip
LINE_ENDS: Ranges = ((0x0A, 0x0A), (0x0D, 0x0D), (0x2028, 0x2029))
CONTROLS = {"n": 0x0A, "r": 0x0D, "t": 0x09, "f": 0x0C, "v": 0x0B, "0": 0x00}
HEX = {"x": 2, "u": 4}


class BadPattern(Exception):
    """The pattern cannot be read, or would be too much work; the text says why."""


# --- What a pattern is made of --------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Chars:
    """One character out of some ranges of code points."""

    ranges: Ranges


@dataclass(frozen=True, slots=True)
class Sequence:
    """Parts, one after the other. None at all: the empty text."""

    parts: "tuple[Node, ...]"


@dataclass(frozen=True, slots=True)
class Choice:
    """One of several."""

    options: "tuple[Node, ...]"


@dataclass(frozen=True, slots=True)
class Repeat:
    """A body, at least `low` times and at most `high`; without a limit where that is None."""

    body: "Node"
    low: int
    high: int | None
    braces: bool = False


Node = Chars | Sequence | Choice | Repeat


def is_nullable(node: Node) -> bool:
    """Tell whether a node can match nothing."""
    if isinstance(node, Chars):
        return False
    if isinstance(node, Sequence):
        return all(map(is_nullable, node.parts))
    if isinstance(node, Choice):
        return any(map(is_nullable, node.options))
    return node.low == 0 or is_nullable(node.body)


def empty_repetition(node: Node, limit: int) -> bool:
    """Tell whether braces repeat what can match nothing more than `limit` times."""
    if isinstance(node, Chars):
        return False
    if isinstance(node, Repeat):
        many = node.braces and (node.high is None or node.high > limit)
        return (many and is_nullable(node.body)) or empty_repetition(node.body, limit)
    inner = node.parts if isinstance(node, Sequence) else node.options
    return any(empty_repetition(part, limit) for part in inner)


# --- The parser -----------------------------------------------------------------------------------


def read(pattern: str) -> Node:
    """Return a pattern as a tree; raise BadPattern."""
    reader = _Reader(pattern)
    tree = reader.choice()
    if not reader.at_end:
        reader.fail("')' without '('")
    return tree


class _Reader:
    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._groups = 0

    @property
    def at_end(self) -> bool:
        return self._at >= len(self._text)

    def fail(self, reason: str) -> NoReturn:
        raise BadPattern(f"{reason} at character {self._at + 1}")

    def choice(self) -> Node:
        options = [self._sequence()]
        while self._take("|"):
            options.append(self._sequence())
        return options[0] if len(options) == 1 else Choice(tuple(options))

    def _sequence(self) -> Node:
        parts: list[Node] = []
        # Where the row of plain characters that ends here began.
        plain = 0
        while not self.at_end and self._text[self._at] not in "|)":
            escaped, is_plain = self._text[self._at] == "\\", self._is_plain()
            node = self._atom()
            if node is None:
                continue
            parts.append(node)
            if (bounds := self._bounds()) is not None:
                parts[plain:] = self._repeated(parts[plain:], bounds, escaped)
            if bounds is not None or not is_plain:
                plain = len(parts)
        return Sequence(tuple(parts))

    def _repeated(
        self, row: list[Node], bounds: tuple[int, int | None, bool], escaped: bool
    ) -> list[Node]:
        """Return a row of parts whose last is repeated.

        llama.cpp repeats the whole row of plain characters where an escaped one ends it, so
        both readings count then.
        """
        ours = [*row[:-1], _repeat(row[-1], bounds)]
        if not escaped or len(row) == 1:
            return ours
        return [Choice((Sequence(tuple(ours)), _repeat(Sequence(tuple(row)), bounds)))]

    def _is_plain(self) -> bool:
        return self._text[self._at] not in ".([^$"

    def _atom(self) -> Node | None:
        """Return the next part, None for an anchor."""
        char = self._next()
        if char in "^$":
            return None
        if char == "(":
            return self._group()
        if char == "[":
            return Chars(self._bracketed())
        if char == ".":
            return Chars(_complement(LINE_ENDS))
        if char == "\\":
            return Chars(self._escape())
        if char in "*+?{":
            self._at -= 1
            self.fail(f"'{char}' without something to repeat")
        if char in "]}":
            self._at -= 1
            self.fail(f"'{char}' must be escaped")
        return Chars(((ord(char), ord(char)),))

    def _group(self) -> Node:
        self._groups += 1
        if self._groups > MAX_GROUPS:
            self.fail("groups are nested too deeply")
        if self._take("?") and not self._take(":"):
            self.fail("lookaround and named groups are not supported")
        inside = self.choice()
        if not self._take(")"):
            self.fail("'(' without ')'")
        self._groups -= 1
        return inside

    def _bounds(self) -> tuple[int, int | None, bool] | None:
        """Return how often the last part is repeated, None for once.

        A lazy one is optional to llama.cpp, which reads its '?' as a second repetition.
        """
        found = self._one_bound()
        if found is not None and self._take("?"):
            found = (0, *found[1:])
        if found is not None and not self.at_end and self._text[self._at] in "*+?{":
            self.fail("a repetition of a repetition")
        return found

    def _one_bound(self) -> tuple[int, int | None, bool] | None:
        for sign, low, high in (("*", 0, None), ("+", 1, None), ("?", 0, 1)):
            if self._take(sign):
                return low, high, False
        if self.at_end or self._text[self._at] != "{":
            return None
        found = BRACES.match(self._text, self._at)
        if found is None:
            self.fail("'{' must be escaped or begin a repetition such as {1,3}")
        self._at = found.end()
        least = int(found[1])
        most = least if not found[2] else int(found[3]) if found[3] else None
        if most is not None and most < least:
            self.fail("a repetition whose bounds are in the wrong order")
        return least, most, True

    def _bracketed(self) -> Ranges:
        is_complement = self._take("^")
        found: list[tuple[int, int]] = []
        while not self._take("]"):
            low = self._member()
            if len(low) > 1 or low[0][0] != low[0][1] or not self._is_range():
                found += low
                continue
            self._at += 1
            high = self._member()
            if len(high) > 1 or high[0][0] != high[0][1] or high[0][0] < low[0][0]:
                self.fail("a range whose ends are no characters in order")
            found.append((low[0][0], high[0][0]))
        if not found:
            self.fail("an empty class")
        merged = _merged(found)
        return _complement(merged) if is_complement else merged

    def _is_range(self) -> bool:
        return self._text[self._at : self._at + 1] == "-" and (
            self._text[self._at + 1 : self._at + 2] not in ("", "]")
        )

    def _member(self) -> Ranges:
        char = self._next()
        if char == "\\":
            return self._escape(in_class=True)
        return ((ord(char), ord(char)),)

    def _escape(self, in_class: bool = False) -> Ranges:
        char = self._next()
        classes = {"d": DIGITS, "w": WORD, "s": SPACE}
        if char.lower() in classes:
            found = classes[char.lower()]
            return found if char.islower() else _complement(found)
        code = self._code_of(char, in_class)
        return ((code, code),)

    def _code_of(self, char: str, in_class: bool) -> int:
        if char in HEX:
            digits = self._text[self._at : self._at + HEX[char]]
            if not re.fullmatch(f"[0-9A-Fa-f]{{{HEX[char]}}}", digits):
                self.fail(f"'\\{char}' without {HEX[char]} hexadecimal digits")
            self._at += HEX[char]
            return int(digits, 16)
        if char in CONTROLS:
            return CONTROLS[char]
        if char == "b" and in_class:
            return 0x08
        if char.isalnum():
            self.fail(f"'\\{char}' is not supported")
        return ord(char)

    def _next(self) -> str:
        if self.at_end:
            self.fail("the pattern ends too early")
        self._at += 1
        return self._text[self._at - 1]

    def _take(self, char: str) -> bool:
        found = self._text[self._at : self._at + 1] == char
        self._at += found
        return found


def _repeat(body: Node, bounds: tuple[int, int | None, bool]) -> Node:
    return Repeat(body, *bounds)


def _merged(ranges: list[tuple[int, int]]) -> Ranges:
    merged: list[tuple[int, int]] = []
    for low, high in sorted(ranges):
        if merged and low <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(high, merged[-1][1]))
        else:
            merged.append((low, high))
    return tuple(merged)


def _complement(ranges: Ranges) -> Ranges:
    found, begin = [], 0
    for low, high in ranges:
        if begin < low:
            found.append((begin, low - 1))
        begin = high + 1
    return tuple([*found, (begin, LAST_CODE_POINT)] if begin <= LAST_CODE_POINT else found)
