"""The automaton of one regular expression, parsed by greenery, its states made on demand; it draws no strings."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from greenery import Charclass, parse
from greenery.parse import NoMatch
from greenery.rxelems import Mult, Pattern

from fastcluster_lm.errors import TaskError

# bounds that keep a careless expression such as (a{900}){900} or (a|b)*a(a|b){40} from filling the memory;
# both are a hundred times what a task set of the paper's size needs
MAX_POSITIONS = 2_000
MAX_STATES = 20_000

# the form that generated task sets have; read here directly because greenery takes 2 ms an expression
_CLASS = r"\[([^\W_]+)\](?:\{(0|[1-9][0-9]*)\})?"
_CLASS_RUN = re.compile(_CLASS)
_ONLY_CLASSES = re.compile(f"(?:{_CLASS})+")

# what may hold a ^ or $ that is meant as a letter: an escape or a class
_QUOTED = re.compile(r"\\.|\[(?:\\.|[^\]\\])*\]", re.DOTALL)

START = 0


@dataclass(frozen=True)
class _Fragment:
    """A piece of an expression: the positions that can begin it and end it, and whether it can be empty."""

    first: frozenset[int]
    last: frozenset[int]
    nullable: bool


_EMPTY_STRING = _Fragment(frozenset(), frozenset(), True)
_NO_STRING = _Fragment(frozenset(), frozenset(), False)


class _Positions:
    """The positions of an expression: each holds the letters it can emit and the positions that may follow it."""

    def __init__(self) -> None:
        self.letters: list[frozenset[str]] = []
        self.follow: list[set[int]] = []

    def add(self, letters: frozenset[str]) -> _Fragment:
        if not letters:
            return _NO_STRING
        if len(self.letters) >= MAX_POSITIONS:
            raise TaskError(f"the expression spells out to over {MAX_POSITIONS} positions; lower its repeat counts")
        self.letters.append(letters)
        self.follow.append(set())
        position = frozenset({len(self.letters) - 1})
        return _Fragment(position, position, False)

    def concatenate(self, left: _Fragment, right: _Fragment) -> _Fragment:
        for position in left.last:
            self.follow[position] |= right.first
        return _Fragment(
            left.first | right.first if left.nullable else left.first,
            left.last | right.last if right.nullable else right.last,
            left.nullable and right.nullable,
        )

    def repeat(self, mult: Mult) -> _Fragment:
        least, most = mult.multiplier.min.v, mult.multiplier.max.v
        assert least is not None
        whole = _EMPTY_STRING
        for _ in range(least):
            copy = self.build(mult.multiplicand)
            whole = self.concatenate(whole, copy)
            if not copy.first:  # nothing but the empty string, or no string at all: further copies add nothing
                break
        if most is None:
            loop = self.build(mult.multiplicand)
            self.concatenate(loop, loop)
            return self.concatenate(whole, _Fragment(loop.first, loop.last, True))
        # x{0,3} is (x(x(x)?)?)?, built from the inside
        tail = _EMPTY_STRING
        for _ in range(most - least):
            copy = self.build(mult.multiplicand)
            if not copy.first:
                break
            joined = self.concatenate(copy, tail)
            tail = _Fragment(joined.first, joined.last, True)
        return self.concatenate(whole, tail)

    def build(self, node: Pattern | Charclass) -> _Fragment:
        if isinstance(node, Charclass):
            if node.negated:
                raise TaskError(
                    f"{str(node)!r} stands for letters that are not listed; expected a finite alphabet, so list "
                    "the letters, as in [abc] or [a-f] ('.', '[^a]', \\D, \\W and \\S are refused)"
                )
            return self.add(frozenset(node.get_chars()))
        parts = []
        for conc in node.concs:
            whole = _EMPTY_STRING
            for mult in conc.mults:
                whole = self.concatenate(whole, self.repeat(mult))
            parts.append(whole)
        # an alternative that holds no string, such as a[], leaves positions that cannot be ended; _live drops them
        return _Fragment(
            frozenset().union(*(part.first for part in parts)),
            frozenset().union(*(part.last for part in parts)),
            any(part.nullable for part in parts),
        )


class Automaton:
    """A deterministic automaton whose states are numbered as they are met; state 0 is the start."""

    def __init__(self, pattern: str) -> None:
        positions = _Positions()
        whole = _read(pattern, positions)
        alive = _live(whole, positions.follow)
        self._letters = positions.letters
        self._follow = [frozenset(follow) & alive for follow in positions.follow]
        self._first = whole.first & alive
        self._last = whole.last & alive
        self.alphabet = frozenset[str]().union(*(positions.letters[position] for position in alive))
        # the start is no set of positions; -1 marks it, so that it never equals a state met later
        self._sets: list[frozenset[int]] = [frozenset({-1})]
        self._numbers: dict[frozenset[int], int] = {self._sets[START]: START}
        self._moves: list[dict[str, int] | None] = [None]
        self._accepts_empty = whole.nullable

    def accepts(self, state: int) -> bool:
        """Say whether a string may end in this state."""
        return self._accepts_empty if state == START else not self._last.isdisjoint(self._sets[state])

    def moves(self, state: int) -> Mapping[str, int]:
        """Give the state that each possible letter leads to, letters in code-point order."""
        known = self._moves[state]
        if known is None:
            known = self._moves[state] = self._find_moves(state)
        return known

    def _find_moves(self, state: int) -> dict[str, int]:
        if state == START:
            following = self._first
        else:
            following = frozenset[int]().union(*(self._follow[position] for position in self._sets[state]))
        targets: dict[str, set[int]] = {}
        for position in following:
            for letter in self._letters[position]:
                targets.setdefault(letter, set()).add(position)
        return {letter: self._number(frozenset(targets[letter])) for letter in sorted(targets)}

    def _number(self, positions: frozenset[int]) -> int:
        number = self._numbers.get(positions)
        if number is None:
            number = len(self._sets)
            if number >= MAX_STATES:
                raise TaskError(f"the expression needs more than {MAX_STATES} states; simplify it")
            self._numbers[positions] = number
            self._sets.append(positions)
            self._moves.append(None)
        return number


def _read(pattern: str, positions: _Positions) -> _Fragment:
    """Add a pattern's positions, by greenery's parser unless it is a plain run of letter classes."""
    if _ONLY_CLASSES.fullmatch(pattern):
        whole = _EMPTY_STRING
        for letters, repeats in _CLASS_RUN.findall(pattern):
            for _ in range(int(repeats or 1)):
                whole = positions.concatenate(whole, positions.add(frozenset(letters)))
        return whole
    try:
        parsed = parse(pattern)
        # greenery reads them as letters, which nobody means
        if not {"^", "$"}.isdisjoint(_QUOTED.sub("", pattern)):
            raise TaskError("an expression always stands for whole strings; leave out ^ and $, or write [$] or [\\^]")
        return positions.build(parsed)
    except (NoMatch, ValueError, IndexError) as error:
        # greenery runs off the end of an unclosed bracket with an IndexError that says nothing
        reason = "a bracket or escape is not closed" if isinstance(error, IndexError) else str(error)
        raise TaskError(f"not a regular expression that can be read: {reason}") from error
    except RecursionError as error:
        raise TaskError("the expression is nested too deeply to be read; simplify it") from error


def _live(whole: _Fragment, follow: list[set[int]]) -> frozenset[int]:
    """Find the positions that lie on a way from the beginning to an end."""
    precede: list[set[int]] = [set() for _ in follow]
    for position, following in enumerate(follow):
        for other in following:
            precede[other].add(position)
    return _reach(whole.first, follow) & _reach(whole.last, precede)


def _reach(begin: Iterable[int], following: list[set[int]]) -> frozenset[int]:
    found = set(begin)
    waiting = list(found)
    while waiting:
        fresh = following[waiting.pop()] - found
        found |= fresh
        waiting.extend(fresh)
    return frozenset(found)
