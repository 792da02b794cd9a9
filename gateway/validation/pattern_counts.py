"""Count in how many ways a text can match a pattern. Pure.

llama.cpp turns a pattern into a grammar and, before each token, follows every way in which each
token of its vocabulary could go on, for all customers of the model at once. A pattern such as
`^(-{1,3}){1,20}$` matches a row of dashes in millions of ways and stops the model for minutes.
Measured: nesting, `*`, `+` and large bounds do no harm by themselves; ambiguity does.

Ways are counted on the automaton of positions (Glushkov): a bounded repetition above COPIES counts
as a loop, a shorter one as copies.
"""

from collections import defaultdict
from dataclasses import dataclass, field
from itertools import pairwise

from gateway.validation.patterns import BadPattern, Chars, Choice, Node, Ranges, Repeat, Sequence

MAX_POSITIONS = 2000
# Bounded repetitions up to this are written out.
COPIES = 4
# How long a row of the same character one token of a vocabulary holds, and how long a word.
LONGEST_RUN = {"a": 8, "A": 16, "0": 16}
LONGEST_OTHER_RUN = 64
LONGEST_WORD = 12
# Few letters spell no long word.
FEW_LETTERS, LONGEST_WORD_OF_FEW = 3, 8
TOO_LONG = "the pattern is too long or too complicated"


@dataclass(slots=True)
class Work:
    """How much more may be spent on a schema, in steps of well under a microsecond."""

    left: int

    def spend(self, steps: int) -> None:
        self.left -= steps
        if self.left < 0:
            raise BadPattern(TOO_LONG)


# What one kind of character leads to: positions, each in so many ways.
_Step = list[tuple[int, int]]


# --- The automaton of positions -------------------------------------------------------------------


@dataclass(slots=True)
class _Fragment:
    """Where a part can begin and end, by position, and whether it can be nothing."""

    first: list[int] = field(default_factory=list)
    last: list[int] = field(default_factory=list)
    nullable: bool = True


class _Automaton:
    """Every character of a pattern is a position. `follow[p][q]`: how many ways lead from the
    character at `p` to the one at `q` next. The last entry of `follow` is the beginning."""

    def __init__(self, tree: Node, work: Work) -> None:
        self._work = work
        self.sets: list[Ranges] = []
        self.follow: list[defaultdict[int, int]] = []
        whole = self._build(tree)
        self.follow.append(defaultdict(int, dict.fromkeys(whole.first, 1)))

    def _build(self, node: Node) -> _Fragment:
        if isinstance(node, Chars):
            return self._position(node.ranges)
        if isinstance(node, Sequence):
            found = _Fragment()
            for part in node.parts:
                found = self._then(found, self._build(part))
            return found
        if isinstance(node, Choice):
            built = [self._build(option) for option in node.options]
            first = [position for one in built for position in one.first]
            last = [position for one in built for position in one.last]
            return _Fragment(first, last, any(one.nullable for one in built))
        return self._repeat(node)

    def _position(self, ranges: Ranges) -> _Fragment:
        if len(self.sets) >= MAX_POSITIONS:
            raise BadPattern(TOO_LONG)
        self.sets.append(ranges)
        self.follow.append(defaultdict(int))
        here = len(self.sets) - 1
        return _Fragment([here], [here], False)

    def _repeat(self, node: Repeat) -> _Fragment:
        if node.high == 0:
            return _Fragment()
        if node.high is None or node.high > COPIES:
            found = self._build(node.body)
            # In `x+` the first x is another than those that follow, in `x*` all are the same.
            self._join(found.last, found.first, same=node.low == 0 and node.high is None)
            return _Fragment(found.first, found.last, found.nullable or node.low == 0)
        # x{1,3} is x(x(x)?)?: without the second x there is no third.
        copies = [self._build(node.body) for _ in range(node.high)]
        found = copies.pop()
        for number in range(len(copies), 0, -1):
            found.nullable = found.nullable or number >= node.low
            found = self._then(copies.pop(), found)
        found.nullable = found.nullable or node.low == 0
        return found

    def _then(self, one: _Fragment, other: _Fragment) -> _Fragment:
        self._join(one.last, other.first)
        first = one.first + (other.first if one.nullable else [])
        last = other.last + (one.last if other.nullable else [])
        return _Fragment(first, last, one.nullable and other.nullable)

    def _join(self, last: list[int], first: list[int], *, same: bool = False) -> None:
        self._work.spend(len(last) * len(first) + len(last) + len(first))
        for position in last:
            ways = self.follow[position]
            for following in first:
                if not (same and ways[following]):
                    ways[following] += 1


def choices(automaton: _Automaton) -> int:
    """Return how many positions can come next, at the place where most can."""
    return max(sum(ways.values()) for ways in automaton.follow)


def ways(tree: Node, limit: int, work: Work) -> tuple[int, int]:
    """Return how many characters can come next at most, and in how many ways one token's text can
    match; the latter may be given as anything above the limit. Raises BadPattern."""
    automaton = _Automaton(tree, work)
    kinds = _kinds(automaton.sets, work)
    most = _word_ways(automaton, kinds, limit, work)
    for kind in kinds:
        if most <= limit:
            most = max(most, _run_ways(automaton, kind, limit, work))
    return choices(automaton), most


@dataclass(frozen=True, slots=True)
class _Kind:
    """Characters that no class of the pattern tells apart."""

    positions: frozenset[int]
    longest_run: int


def _kinds(sets: list[Ranges], work: Work) -> list[_Kind]:
    by_set: defaultdict[Ranges, list[int]] = defaultdict(list)
    for position, ranges in enumerate(sets):
        by_set[ranges].append(position)
    bounds = sorted({edge for ranges in by_set for low, high in ranges for edge in (low, high + 1)})
    work.spend(len(bounds) * len(by_set))
    longest: dict[frozenset[int], int] = {}
    for low, after in pairwise(bounds):
        inside = [by_set[ranges] for ranges in by_set if _holds(ranges, low)]
        positions = frozenset(position for found in inside for position in found)
        longest[positions] = max(longest.get(positions, 0), _longest_run(low, after - 1))
    return [_Kind(positions, run) for positions, run in longest.items() if positions]


def _holds(ranges: Ranges, code: int) -> bool:
    return any(low <= code <= high for low, high in ranges)


def _longest_run(low: int, high: int) -> int:
    for begin, end in (("a", "z"), ("A", "Z"), ("0", "9")):
        if ord(begin) <= low and high <= ord(end):
            return LONGEST_RUN[begin]
    return LONGEST_OTHER_RUN


def _run_ways(automaton: _Automaton, kind: _Kind, limit: int, work: Work) -> int:
    """Return in how many ways a row of one character matches, from the place where most do."""
    nexts = [
        [found] if (found := [(q, n) for q, n in ways.items() if q in kind.positions]) else []
        for ways in automaton.follow
    ]
    return _most(nexts, kind.longest_run, limit, work)


def _word_ways(automaton: _Automaton, kinds: list[_Kind], limit: int, work: Work) -> int:
    """Return in how many ways a word matches at most: after each character, its worst next one.

    The same character twice over is left to the rows.
    """
    positions = range(len(automaton.follow))
    nexts = [_by_kind(automaton, kinds, position, work) for position in positions]
    return _most(nexts, _longest_word(automaton.sets), limit, work)


def _most(nexts: list[list[_Step]], longest: int, limit: int, work: Work) -> int:
    """Return the most ways of a text up to a length. `nexts`: for each position the steps to the
    next, one list for each kind of character."""
    edges = len(nexts) + sum(len(step) for steps in nexts for step in steps)
    counts, most = [1] * len(nexts), 1
    for _ in range(longest):
        work.spend(edges)
        after = [
            max((sum(n * counts[q] for q, n in step) for step in steps), default=0)
            for steps in nexts
        ]
        most = max(most, *after)
        if after == counts or most > limit:
            break
        counts = after
    return most


def _longest_word(sets: list[Ranges]) -> int:
    letters = {
        ranges
        for ranges in sets
        if len(ranges) == 1 and _longest_run(*ranges[0]) == LONGEST_RUN["a"]
    }
    singles = {ranges for ranges in letters if ranges[0][0] == ranges[0][1]}
    is_few = len(singles) <= FEW_LETTERS and singles.issuperset(sets)
    return LONGEST_WORD_OF_FEW if is_few else LONGEST_WORD


def _by_kind(automaton: _Automaton, kinds: list[_Kind], position: int, work: Work) -> list[_Step]:
    """Return what can follow a position, once for each kind of character."""
    following = {
        q: n for q, n in automaton.follow[position].items() if not _is_twice(automaton, position, q)
    }
    work.spend(len(following) * len(kinds))
    groups = ([(q, n) for q, n in following.items() if q in kind.positions] for kind in kinds)
    return [group for group in groups if group]


def _is_twice(automaton: _Automaton, position: int, following: int) -> bool:
    if position >= len(automaton.sets):
        return False
    ranges = automaton.sets[following]
    return ranges == automaton.sets[position] and len(ranges) == 1 and ranges[0][0] == ranges[0][1]
