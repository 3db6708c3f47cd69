"""Expressions count, order, draw and compare strings as brute force and greenery do."""

import functools
import itertools

import numpy as np
import pytest
from greenery import parse
from scipy.stats import chisquare

from fastcluster_lm.errors import TaskError
from fastcluster_lm.tasks.expressions import Expression

PATTERNS = [
    "[abc]{3}",
    "[ab][b-d][acd]{2}",
    "(ab|c){2,}d?",
    "a{0,3}b*",
    "(a|b)*a(a|b){3}",
    "",
    "(|a)(b|)",
    "[]a|b",
    "([]{5}|a)b",
    "([]b)?c",
    "(a*)*b{2,4}",
    "((a|b{0}){2})+c",
    "a(b[]|c)d?",
    "(a?){2,3}[b]{0}",
    "[a]{0}[b]",
]


@functools.cache
def strings_by_greenery(pattern: str, length: int) -> list[str]:
    automaton = parse(pattern).to_fsm()
    return [x for x in map("".join, itertools.product("abcd", repeat=length)) if automaton.accepts(x)]


@pytest.mark.parametrize("pattern", PATTERNS)
def test_language_equals_greenery(pattern: str) -> None:
    expression = Expression(pattern)
    rng = np.random.default_rng(0)
    for length in range(6):
        expected = strings_by_greenery(pattern, length)
        assert expression.count(length) == len(expected)
        drawn = expression.sample_distinct(length, len(expected), rng)
        assert sorted(drawn) == expected
        held = expression.letters_by_position(length)
        assert held == [{string[position] for string in expected} for position in range(length)]


@pytest.mark.parametrize(("one", "other"), itertools.combinations(PATTERNS[:8], 2))
def test_shared_string_equals_greenery(one: str, other: str) -> None:
    found = Expression(one).shared_string(Expression(other))
    both = parse(one).to_fsm() & parse(other).to_fsm()
    if found is None:
        assert both.empty()
    else:
        assert both.accepts(found)
        shorter = itertools.chain.from_iterable(itertools.product("abcd", repeat=n) for n in range(len(found)))
        assert not any(both.accepts("".join(string)) for string in shorter)
    for length in range(5):
        expected = sorted(set(strings_by_greenery(one, length)) & set(strings_by_greenery(other, length)))
        shared = Expression(one).shared_string(Expression(other), length=length)
        assert shared == (expected[0] if expected else None)


def test_shared_string_needs_the_end_and_not_only_the_letters() -> None:
    # both can begin with ab and both hold c and d at the end, but no string is in both
    assert Expression("abc|xyd").shared_string(Expression("abd|xyc")) is None
    assert Expression("abc|xyd").shared_string(Expression("abd|xyc"), length=3) is None
    assert Expression("a{7}b*").shared_string(Expression("a*b")) == "aaaaaaab"


@pytest.mark.parametrize("pattern", ["(a|bb)*(c|[de]f?)*", "[abc]{4}", "a*b*c*d*"])
def test_sample_is_uniform(pattern: str) -> None:
    expression = Expression(pattern)
    n_strings = expression.count(4)
    assert 10 < n_strings < 300
    drawn = expression.sample(4, 40 * n_strings, np.random.default_rng(7))
    strings, counts = np.unique(drawn, return_counts=True)
    assert len(strings) == n_strings
    automaton = parse(pattern).to_fsm()
    assert all(automaton.accepts(string) for string in strings)
    assert chisquare(counts).pvalue > 1e-3


@pytest.mark.parametrize("n", [3, 30])  # by dropping repeats, and by a permutation
def test_sample_distinct_is_uniform(n: int) -> None:
    expression = Expression("(a|bb)*(c|d)*")
    n_strings = expression.count(4)
    # (a|bb)* has 1, 1, 2, 3, 5 strings of length 0 to 4, and (c|d)* has 16, 8, 4, 2, 1 for the rest
    assert n_strings == 16 + 8 + 8 + 6 + 5
    rng = np.random.default_rng(3)
    first: list[str] = []
    everything: list[str] = []
    for _ in range(2000):
        drawn = expression.sample_distinct(4, n, rng)
        assert len(set(drawn)) == n
        first.append(drawn[0])
        everything += drawn
    for drawn in (first, everything):
        _, counts = np.unique(drawn, return_counts=True)
        assert len(counts) == n_strings
        assert chisquare(counts).pvalue > 1e-3


def test_counts_beyond_64_bits_are_exact_and_drawn_evenly() -> None:
    expression = Expression("[a-z]{64}|[A-Z][a-z]{63}b?")
    assert expression.count(64) == 2 * 26**64
    drawn = expression.sample(64, 2000, np.random.default_rng(0))
    capital = sum(string[0].isupper() for string in drawn)
    assert abs(capital - 1000) < 4 * np.sqrt(500)
    for position in (1, 31, 62, 63):
        _, counts = np.unique([string[position] for string in drawn], return_counts=True)
        assert len(counts) == 26
        assert chisquare(counts).pvalue > 1e-3
    assert len(set(expression.sample_distinct(64, 50, np.random.default_rng(0)))) == 50
    # 3**50 is 0.6 of the next power of two, so ranks wrapped round instead of drawn anew would favour the letter a
    first = [string[0] for string in Expression("[abc]{50}").sample(50, 2000, np.random.default_rng(0))]
    assert chisquare(np.unique(first, return_counts=True)[1]).pvalue > 1e-3


def test_same_seed_draws_same_strings_and_another_seed_does_not() -> None:
    draw = [Expression("([abc]|de)*").sample(8, 20, np.random.default_rng(seed)) for seed in (1, 1, 2)]
    assert draw[0] == draw[1] != draw[2]


def test_alphabet_holds_only_letters_that_can_be_emitted() -> None:
    assert Expression("[abc]x?|d[]").alphabet == frozenset("abcx")
    assert Expression("é[b-d]{2}").alphabet == frozenset("ébcd")
    assert Expression("(q[])?").alphabet == frozenset()


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("[", "not closed"),
        ("(a", "Could not parse"),
        ("[z-a]", "Bad range"),
        ("a{3,2}", "Invalid multiplier"),
        ("(" * 3000, "nested too deeply"),
        ("a.b", "list the letters"),
        ("[^a]", "list the letters"),
        (r"a\D", "list the letters"),
        ("^a", "whole strings"),
        ("(a|b$)", "whole strings"),
        ("(a{900}){900}", "repeat counts"),
        ("[a]{999999999}", "repeat counts"),
    ],
)
def test_unreadable_pattern_is_refused(pattern: str, message: str) -> None:
    with pytest.raises(TaskError, match=message):
        Expression(pattern)


def test_a_quoted_anchor_is_a_letter() -> None:
    assert Expression(r"[$][\^]").sample(2, 1, np.random.default_rng(0)) == ["$^"]


def test_exploding_automaton_is_refused() -> None:
    with pytest.raises(TaskError, match="states; simplify"):
        Expression("(a|b)*a(a|b){40}").count(60)


def test_drawing_more_than_there_are_is_refused() -> None:
    rng = np.random.default_rng(0)
    with pytest.raises(TaskError, match="has 9 strings of length 2, but 10 different"):
        Expression("[abc]{2}").sample_distinct(2, 10, rng)
    with pytest.raises(TaskError, match="no string of length 3"):
        Expression("[abc]{2}").sample(3, 1, rng)
    assert Expression("[abc]{2}").sample(3, 0, rng) == []
    with pytest.raises(TaskError, match="found -1"):
        Expression("a").count(-1)


def test_expressions_compare_by_pattern() -> None:
    assert {Expression("a"), Expression("a"), Expression("b")} == {Expression("a"), Expression("b")}
    assert Expression("a") != "a"
