"""A task set that is not well formed is refused with the key at fault."""

from dataclasses import replace

import numpy as np
import pytest

from fastcluster_lm.errors import TaskError
from fastcluster_lm.tasks.taskset import Task, TaskSet

GOOD = TaskSet(
    inputs=("A", "B"),
    outputs=("x", "y", "z"),
    lengths=(3, 4),
    tasks=(
        Task("one", ("a[bc]{2,3}", "b[bc]{2,3}"), (0, 1)),
        Task("two", ("(c|cd)[bc]{2}",), (2, 1)),
    ),
)


def with_expressions(*expressions: tuple[str, ...]) -> TaskSet:
    return replace(GOOD, tasks=tuple(Task(f"t{index}", own, (0, 0)) for index, own in enumerate(expressions)))


def test_good_taskset_passes_and_describes_itself() -> None:
    GOOD.check()
    GOOD.check(needed_strings=4)
    assert (GOOD.n_tasks, GOOD.n_inputs, GOOD.n_outputs, GOOD.n_distributions) == (2, 2, 3, 3)
    found = [(task, expression.pattern) for task, expression in GOOD.distributions]
    assert found == [(0, "a[bc]{2,3}"), (0, "b[bc]{2,3}"), (1, "(c|cd)[bc]{2}")]
    assert GOOD.alphabet == ("a", "b", "c", "d")


@pytest.mark.parametrize(
    ("taskset", "message"),
    [
        (replace(GOOD, inputs=()), "inputs: expected at least one"),
        (replace(GOOD, outputs=()), "outputs: expected at least one"),
        (replace(GOOD, inputs=("A", "A")), r"inputs\[1\]: 'A' stands at inputs\[0\]"),
        (replace(GOOD, outputs=("x", "y", "x")), r"outputs\[2\]: 'x' stands at outputs\[0\]"),
        (replace(GOOD, inputs=("A", "")), r"inputs\[1\]: expected a token"),
        (replace(GOOD, lengths=()), "lengths: expected at least one"),
        (replace(GOOD, lengths=(3, 0)), r"lengths\[1\]: expected a length of 1 or more, found 0"),
        (replace(GOOD, lengths=(3, 2**31)), r"lengths\[1\]: expected a length of 1000 or less, found 2147483648"),
        (replace(GOOD, lengths=(3, 4, 3)), r"lengths\[2\]: 3 stands at lengths\[0\]"),
        (replace(GOOD, tasks=()), "tasks: expected at least one"),
        (replace(GOOD, tasks=(Task("", ("a{3,4}",), (0, 0)),)), r"tasks\[0\]\.name: expected a name"),
        (
            replace(GOOD, tasks=(GOOD.tasks[0], replace(GOOD.tasks[1], name="one"))),
            r"tasks\[1\]\.name: 'one' is .* tasks\[0\]",
        ),
        (replace(GOOD, tasks=(Task("t", (), (0, 0)),)), r"tasks\[0\]\.expressions: expected at least one"),
        (replace(GOOD, tasks=(Task("t", ("a{3,4}",), (0,)),)), r"tasks\[0\]\.table: expected 2 outputs.*found 1"),
        (replace(GOOD, tasks=(Task("t", ("a{3,4}",), (0, 3)),)), r"tasks\[0\]\.table\[1\]: .*0 to 2, found 3"),
        (replace(GOOD, tasks=(Task("t", ("a{3,4}",), (-1, 0)),)), r"tasks\[0\]\.table\[0\]: .*found -1"),
    ],
)
def test_malformed_taskset_is_refused(taskset: TaskSet, message: str) -> None:
    with pytest.raises(TaskError, match=message):
        taskset.check()


def test_invalid_expression_is_refused_with_its_key() -> None:
    with pytest.raises(TaskError, match=r"tasks\[1\]\.expressions\[1\]: '\[': not a regular expression"):
        with_expressions(("a{3,4}",), ("b{3,4}", "[")).check()
    with pytest.raises(TaskError, match=r"tasks\[0\]\.expressions\[0\]: '\.\*'.*list the letters"):
        with_expressions((".*",)).check()
    exploding = replace(with_expressions(("a{60}", "(a|b)*a(a|b){40}")), lengths=(60,))
    with pytest.raises(TaskError, match=r"tasks\[0\]\.expressions\[1\]: .*states"):
        exploding.check()


def test_too_small_a_language_is_refused_at_any_length() -> None:
    # at length 3: 4 strings each in the first task, 4 in the second; at length 4: 8, 8 and 4
    with pytest.raises(TaskError, match=r"tasks\[0\]\.expressions\[0\]: .* has 4 strings of length 3, but 5"):
        GOOD.check(needed_strings=5)
    at_four = replace(GOOD, lengths=(4,))
    at_four.check(needed_strings=4)
    with pytest.raises(TaskError, match=r"tasks\[1\]\.expressions\[0\]: .* has 4 strings of length 4, but 5"):
        at_four.check(needed_strings=5)
    with pytest.raises(TaskError, match=r"tasks\[0\]\.expressions\[0\]: .* has 0 strings of length 5"):
        replace(GOOD, lengths=(3, 5)).check()


@pytest.mark.parametrize(
    ("expressions", "keys", "example"),
    [
        ((("[ab]{3,4}",), ("[bc]{3,4}",)), (r"tasks\[0\]\.expressions\[0\]", r"tasks\[1\]\.expressions\[0\]"), "bbb"),
        (
            (("a{3,4}", "c{3,4}|(ca)*"), ("b{3,4}", "(c|b)*b*d*c")),
            (r"tasks\[0\]\.expressions\[1\]", r"tasks\[1\]\.expressions\[1\]"),
            "ccc",
        ),
        ((("[ab]{3,4}", "b+"),), (r"tasks\[0\]\.expressions\[0\]", r"tasks\[0\]\.expressions\[1\]"), "bbb"),
        ((("abc|aaaa",), ("xyz|aaaa",)), (r"tasks\[0\]\.expressions\[0\]", r"tasks\[1\]\.expressions\[0\]"), "aaaa"),
    ],
    ids=["classes", "general", "one task", "second length only"],
)
def test_shared_string_is_refused_with_an_example(
    expressions: tuple[tuple[str, ...], ...], keys: tuple[str, str], example: str
) -> None:
    with pytest.raises(TaskError, match=f"{keys[0]} and {keys[1]}: .*'{example}' for example"):
        with_expressions(*expressions).check()


def test_languages_that_meet_only_at_other_lengths_pass() -> None:
    with_expressions(("a{3,4}|xx",), ("b{3,4}|xx",)).check()


def test_languages_with_common_letters_everywhere_but_no_common_string_pass() -> None:
    replace(with_expressions(("abc|xyd",), ("abd|xyc",)), lengths=(3,)).check()


def test_an_input_may_equal_a_letter_or_an_output() -> None:
    replace(GOOD, inputs=("a", "x")).check()


def test_instructions_are_different_and_equally_many_at_each_length() -> None:
    taskset = replace(GOOD, lengths=(4, 3))
    drawn = taskset.sample_instructions(3, np.random.default_rng(0))
    assert len(drawn) == 3
    for strings, (_, expression) in zip(drawn, taskset.distributions, strict=True):
        assert [len(string) for string in strings] == [4, 4, 4, 3, 3, 3]
        assert len(set(strings)) == 6
        assert all(expression.shared_string(type(expression)(string)) == string for string in strings)
    assert drawn == taskset.sample_instructions(3, np.random.default_rng(0))
    assert drawn != taskset.sample_instructions(3, np.random.default_rng(1))
    with pytest.raises(TaskError, match=r"tasks\[0\]\.expressions\[0\]: .* has 4 strings of length 3, but 5"):
        taskset.sample_instructions(5, np.random.default_rng(0))
