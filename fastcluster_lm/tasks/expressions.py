"""One regular expression as a set of strings: counts it, draws from it, compares two; it knows nothing of tasks."""

from bisect import bisect_right
from collections.abc import Mapping
from functools import lru_cache
from itertools import accumulate

import numpy as np

from fastcluster_lm.errors import TaskError
from fastcluster_lm.tasks.automaton import START, Automaton

_INT64_RANGE = 2**63


class Expression:
    """A regular expression over a finite alphabet of one-character letters; it always matches whole strings.

    Errors: TaskError if the pattern cannot be read, or uses `.`, a negated class, `^` or `$`
    """

    def __init__(self, pattern: str) -> None:
        self.pattern = pattern
        self._automaton = _automaton(pattern)
        self._lengths: dict[int, _StringsOfLength] = {}

    def __repr__(self) -> str:
        return f"Expression({self.pattern!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Expression) and self.pattern == other.pattern

    def __hash__(self) -> int:
        return hash(self.pattern)

    @property
    def alphabet(self) -> frozenset[str]:
        """Give the letters that some string of the language holds."""
        return self._automaton.alphabet

    def count(self, length: int) -> int:
        """Count the strings of one length, exactly."""
        return self._of_length(length).total

    def letters_by_position(self, length: int) -> list[set[str]]:
        """Give, for each position, the letters that the strings of one length hold there."""
        return self._of_length(length).letters()

    def sample(self, length: int, n: int, rng: np.random.Generator) -> list[str]:
        """Draw n strings of one length, each uniform over the language, with replacement.

        Errors: TaskError if the language has no string of that length
        """
        strings = self._of_length(length)
        if n > 0 and strings.total == 0:
            raise TaskError(f"{self.pattern!r} has no string of length {length}, but {n} are asked for")
        return [strings.string_at(rank) for rank in _draw_ranks(strings.total, n, rng)]

    def sample_distinct(self, length: int, n: int, rng: np.random.Generator) -> list[str]:
        """Draw n different strings of one length, uniform without replacement, in random order.

        Errors: TaskError if the language has fewer than n strings of that length
        """
        strings = self._of_length(length)
        if n > strings.total:
            raise TaskError(
                f"{self.pattern!r} has {strings.total} strings of length {length}, but {n} different ones are asked "
                "for; ask for fewer, or widen the expression"
            )
        if 2 * n > strings.total:
            return [strings.string_at(int(rank)) for rank in rng.permutation(strings.total)[:n]]
        # a dict keeps the order of the draws and drops repeats, which leaves a uniform draw without replacement
        ranks: dict[int, None] = {}
        while len(ranks) < n:
            ranks.update(dict.fromkeys(_draw_ranks(strings.total, n - len(ranks), rng)))
        return [strings.string_at(rank) for rank in ranks]

    def shared_string(self, other: "Expression", *, length: int | None = None) -> str | None:
        """Find a string that both languages hold: the shortest, or one of the given length; None if there is none."""
        if length is None:
            return self._shortest_shared(other)
        mine, theirs = self._of_length(length), other._of_length(length)
        if mine.total == 0 or theirs.total == 0:
            return None
        reached = {(START, START): ""}
        for depth in range(length):
            grown: dict[tuple[int, int], str] = {}
            for (here, there), prefix in reached.items():
                their_moves = theirs.moves(depth, there)
                for letter, state in mine.moves(depth, here).items():
                    if letter in their_moves:
                        grown.setdefault((state, their_moves[letter]), prefix + letter)
            reached = grown
        return next(iter(reached.values()), None)

    def _shortest_shared(self, other: "Expression") -> str | None:
        mine, theirs = self._automaton, other._automaton
        reached = {(START, START): ""}
        met = set(reached)
        while reached:
            grown: dict[tuple[int, int], str] = {}
            for (here, there), prefix in reached.items():
                if mine.accepts(here) and theirs.accepts(there):
                    return prefix
                their_moves = theirs.moves(there)
                for letter, state in mine.moves(here).items():
                    pair = (state, their_moves.get(letter, START))
                    # no move leads back to the start, so START stands for a letter the other cannot take
                    if pair[1] != START and pair not in met:
                        met.add(pair)
                        grown[pair] = prefix + letter
            reached = grown
        return None

    def _of_length(self, length: int) -> "_StringsOfLength":
        if length not in self._lengths:
            if length < 0:
                raise TaskError(f"expected a length of 0 or more, found {length}")
            self._lengths[length] = _StringsOfLength(self._automaton, length)
        return self._lengths[length]


class _StringsOfLength:
    """The strings of one length in code-point order; counts are Python integers, so they never overflow."""

    def __init__(self, automaton: Automaton, length: int) -> None:
        self._automaton = automaton
        self._length = length
        layers: list[set[int]] = [{START}]
        for _ in range(length):
            layers.append({state for here in layers[-1] for state in automaton.moves(here).values()})
        # the number of ways to finish the string from each state; states without one are left out
        counts: list[dict[int, int]] = [{state: 1 for state in layers[-1] if automaton.accepts(state)}]
        for layer in reversed(layers[:-1]):
            after = counts[-1]
            ways = {here: sum(after.get(state, 0) for state in automaton.moves(here).values()) for here in layer}
            counts.append({here: n for here, n in ways.items() if n})
        self._counts = counts[::-1]
        self.total = self._counts[0].get(START, 0)
        self._choices: dict[tuple[int, int], tuple[list[int], list[str], list[int]]] = {}

    def moves(self, depth: int, state: int) -> Mapping[str, int]:
        """Give the moves after `depth` letters from which the string can still be finished."""
        after = self._counts[depth + 1]
        return {letter: to for letter, to in self._automaton.moves(state).items() if to in after}

    def letters(self) -> list[set[str]]:
        """Give the letters at each position."""
        return [
            {letter for state in self._counts[depth] for letter in self.moves(depth, state)}
            for depth in range(self._length)
        ]

    def string_at(self, rank: int) -> str:
        """Give the string of one rank, 0 to total - 1."""
        state, string = START, []
        for depth in range(self._length):
            key = (depth, state)
            if key not in self._choices:
                moves = self.moves(depth, state)
                weights = (self._counts[depth + 1][to] for to in moves.values())
                self._choices[key] = (list(accumulate(weights, initial=0)), list(moves), list(moves.values()))
            begins, letters, targets = self._choices[key]
            index = bisect_right(begins, rank) - 1
            rank -= begins[index]
            string.append(letters[index])
            state = targets[index]
        return "".join(string)


def _draw_ranks(total: int, n: int, rng: np.random.Generator) -> list[int]:
    """Draw n integers from 0 to total - 1, uniform whatever the size of total."""
    if total <= _INT64_RANGE:
        return [int(rank) for rank in rng.integers(total, size=n)] if n else []
    n_bits = (total - 1).bit_length()
    n_bytes = (n_bits + 7) // 8
    ranks: list[int] = []
    while len(ranks) < n:
        rank = int.from_bytes(rng.bytes(n_bytes), "little") >> (8 * n_bytes - n_bits)
        if rank < total:  # rejecting, not wrapping: wrapping would favour the low ranks
            ranks.append(rank)
    return ranks


@lru_cache(maxsize=4096)
def _automaton(pattern: str) -> Automaton:
    return Automaton(pattern)
