"""Generated task sets never overlap, give nothing away in their tables, and depend on the seed alone."""

import itertools
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypedDict

import numpy as np
import pytest
from greenery import parse

from fastcluster_lm.errors import TaskError
from fastcluster_lm.tasks.expressions import Expression
from fastcluster_lm.tasks.generate import STYLES, generate_taskset, letters_of
from fastcluster_lm.tasks.taskset import TaskSet

ROOT = Path(__file__).parents[2]


class Sizes(TypedDict, total=False):
    n_tasks: int
    n_distributions: int
    n_inputs: int
    n_outputs: int
    instruction_length: int
    alphabet_size: int
    letters_per_position: int
    tasks_per_output_min: int
    style: str
    seed: int


PAPER: Sizes = {
    "n_tasks": 12,
    "n_distributions": 2,
    "n_inputs": 8,
    "n_outputs": 4,
    "instruction_length": 8,
    "alphabet_size": 20,
    "letters_per_position": 3,
    "seed": 5,
}


def generate(changes: Sizes) -> TaskSet:
    sizes: Sizes = {**PAPER, **changes}
    return generate_taskset(**sizes)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"style": "constant", "alphabet_size": 80},
        {"style": "blocks", "alphabet_size": 6, "instruction_length": 6},
        {"letters_per_position": 1, "instruction_length": 3},
    ],
)
def test_no_two_distributions_share_a_string(changes: Sizes) -> None:
    taskset = generate(changes)
    expressions = [expression for _, expression in taskset.distributions]
    assert len(expressions) == 24
    sizes: Sizes = {**PAPER, **changes}
    for expression in expressions:
        assert (
            expression.count(sizes["instruction_length"])
            == sizes["letters_per_position"] ** sizes["instruction_length"]
        )
        assert expression.alphabet <= set(letters_of(sizes["alphabet_size"]))
    for one, other in itertools.combinations(expressions, 2):
        assert one.shared_string(other) is None
    # one pair by greenery itself, which is too slow for all
    assert (parse(expressions[0].pattern) & parse(expressions[1].pattern)).empty()


def test_tight_alphabet_forces_redraws_and_still_no_string_is_shared() -> None:
    # 3 of 9 letters at 6 positions: two random distributions overlap with probability 0.18
    taskset = generate({"alphabet_size": 9, "instruction_length": 6})
    expressions = [expression for _, expression in taskset.distributions]
    assert not any(one.shared_string(other) for one, other in itertools.combinations(expressions, 2))


def test_styles_draw_what_they_say() -> None:
    assert set(STYLES) == {"positions", "constant", "blocks"}
    constant = generate({"style": "constant", "alphabet_size": 80})
    assert all(len(expression.alphabet) == 3 for _, expression in constant.distributions)
    positions = generate({})
    assert all(len(expression.alphabet) > 3 for _, expression in positions.distributions)
    blocks = generate({"style": "blocks", "alphabet_size": 6})
    for position in range(8):
        classes = {frozenset(expression.letters_by_position(8)[position]) for _, expression in blocks.distributions}
        assert len(classes) == 2
    # blocks are cut from a shuffled alphabet, not from the alphabet's own order
    few = generate({"style": "constant", "alphabet_size": 26, "n_tasks": 4})
    classes_in_order = ["".join(sorted(expression.alphabet)) for _, expression in few.distributions]
    assert any(letters not in "".join(letters_of(26)) for letters in classes_in_order)


def test_a_new_style_is_one_function_and_its_order_tells_nothing_of_the_task(monkeypatch: pytest.MonkeyPatch) -> None:
    def draw_in_order(
        rng: np.random.Generator, letters: Sequence[str], length: int, letters_per_position: int
    ) -> Iterator[tuple[frozenset[str], ...]]:
        for letter in letters:
            yield (frozenset(letter),) * length

    monkeypatch.setitem(STYLES, "ordered", draw_in_order)
    taskset = generate({"style": "ordered", "alphabet_size": 24})
    patterns = [expression.pattern for _, expression in taskset.distributions]
    assert sorted(patterns) == [f"[{letter}]{{8}}" for letter in letters_of(24)]
    assert patterns != sorted(patterns)


@pytest.mark.parametrize(
    ("n_tasks", "n_inputs", "n_outputs", "least", "n_used"),
    [
        (12, 8, 4, 3, 4),
        (13, 8, 4, 3, 4),
        (12, 6, 20, 3, 4),  # more outputs than can be shared by three tasks each: 4 of the 20 for each input
        (8, 5, 4, 3, 2),
        (8, 5, 4, 2, 4),
        (4, 3, 4, 3, 2),  # three tasks an output would leave one output; two are used at least
        (16, 2, 4, 4, 4),  # every possible table in use, so plain shuffles would hardly ever do
    ],
)
def test_tables_are_balanced_and_different(
    n_tasks: int, n_inputs: int, n_outputs: int, least: int, n_used: int
) -> None:
    for seed in range(3):
        taskset = generate(
            {
                "n_tasks": n_tasks,
                "n_inputs": n_inputs,
                "n_outputs": n_outputs,
                "tasks_per_output_min": least,
                "n_distributions": 1,
                "seed": seed,
            }
        )
        tables = [task.table for task in taskset.tasks]
        assert len(set(tables)) == n_tasks
        inputs_of_output: Counter[int] = Counter({output: 0 for output in range(n_outputs)})
        for column in zip(*tables, strict=True):
            tasks_of_output = Counter(column)
            assert len(tasks_of_output) == n_used
            assert max(tasks_of_output.values()) - min(tasks_of_output.values()) <= 1
            assert min(tasks_of_output.values()) >= min(least, n_tasks // 2)
            inputs_of_output.update(set(column))
        assert max(inputs_of_output.values()) - min(inputs_of_output.values()) <= 1


def test_seed_decides_everything_and_style_leaves_the_tables() -> None:
    assert generate({}) == generate({})
    other = generate({"seed": 6})
    assert [task.table for task in other.tasks] != [task.table for task in generate({}).tasks]
    assert [task.expressions for task in other.tasks] != [task.expressions for task in generate({}).tasks]
    blocks = generate({"style": "blocks"})
    assert [task.table for task in blocks.tasks] == [task.table for task in generate({}).tasks]


def test_hash_order_changes_nothing_and_torch_is_never_imported() -> None:
    program = (
        "import sys, numpy, fastcluster_lm.tasks as tasks\n"
        f"taskset = tasks.generate_taskset(**{PAPER!r})\n"
        "print(taskset, taskset.sample_instructions(5, numpy.random.default_rng(0)))\n"
        "print(tasks.Expression('(ab|c|[de]f)*').sample(6, 9, numpy.random.default_rng(0)))\n"
        "assert 'torch' not in sys.modules\n"
    )
    outputs = [
        subprocess.run(
            [sys.executable, "-c", program],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    ]
    assert outputs[0] == outputs[1] != ""


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_tasks": 0}, "n_tasks: expected 1 or more, found 0"),
        ({"letters_per_position": 21}, "letters_per_position: expected at most alphabet_size=20, found 21"),
        ({"alphabet_size": 100_000}, r"alphabet_size: expected at most \d+, found 100000"),
        ({"style": "constnt"}, "style: .*found 'constnt'; did you mean 'constant'"),
        ({"alphabet_size": 6, "instruction_length": 6}, "expected 24 expressions .* found only .*raise alphabet_size"),
        ({"style": "constant"}, "expected 24 expressions .* found only 6 "),
        ({"n_inputs": 1}, "expected 12 different tables, but 4 outputs for each of 1 inputs give only 4"),
        ({"n_outputs": 1}, "expected 12 different tables"),
    ],
)
def test_impossible_sizes_are_refused(changes: Sizes, message: str) -> None:
    with pytest.raises(TaskError, match=message):
        generate(changes)


def test_letters_are_single_characters_without_repeats() -> None:
    letters = letters_of(1000)
    assert len(set(letters)) == 1000
    assert "".join(letters[:64]) == "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789ÀÁ"
    assert all(len(letter) == 1 and letter.isalnum() for letter in letters)
    # none has a meaning of its own inside a class
    assert Expression(f"[{''.join(letters)}]").count(1) == 1000


def test_largest_set_is_generated_and_checked_in_time() -> None:
    begin = time.process_time()
    taskset = generate({"n_tasks": 64, "n_distributions": 8, "alphabet_size": 26})
    taskset.check(needed_strings=1000)
    # 0.4 s where this was written; 131,000 intersections of whole automata would take hours
    assert time.process_time() - begin < 2
