"""Task sets drawn at random: instructions that never overlap, tables that give nothing away; it reads no files."""

import string
from collections.abc import Callable, Iterator, Sequence
from itertools import chain, groupby

import numpy as np

from fastcluster_lm.errors import TaskError, nearest_name
from fastcluster_lm.tasks.taskset import Task, TaskSet

# a draw that fails this often in a row is given up; at the paper's sizes one draw in a thousand is refused
MAX_REDRAWS = 1_000
# the tightest sets tried (64 tasks, all tables of 2 inputs x 8 outputs, 3 x 4 or 6 x 2 in use) took under 2,000
MAX_SWAPS = 20_000

Classes = tuple[frozenset[str], ...]
Style = Callable[[np.random.Generator, Sequence[str], int, int], Iterator[Classes]]


def generate_taskset(
    *,
    n_tasks: int,
    n_distributions: int,
    n_inputs: int,
    n_outputs: int,
    instruction_length: int,
    alphabet_size: int,
    letters_per_position: int,
    tasks_per_output_min: int = 3,
    style: str = "positions",
    seed: int,
) -> TaskSet:
    """Draw a task set: n_distributions expressions for each task, and balanced tables.

    Each expression is a class of letters_per_position letters at each position, drawn as `style` says; no two share a
    string. For each input, n_tasks // tasks_per_output_min of the outputs (all, if there are fewer; never under 2) are
    used, each by equally many tasks up to one, so that each is shared by tasks_per_output_min tasks wherever n_tasks
    allows it. Over all inputs, every output is used by equally many inputs up to one. No two tasks have the same table.
    Errors: TaskError if a number is out of range, or no such expressions or tables are found
    """
    for name, value in (
        ("n_tasks", n_tasks),
        ("n_distributions", n_distributions),
        ("n_inputs", n_inputs),
        ("n_outputs", n_outputs),
        ("instruction_length", instruction_length),
        ("alphabet_size", alphabet_size),
        ("letters_per_position", letters_per_position),
        ("tasks_per_output_min", tasks_per_output_min),
    ):
        if value < 1:
            raise TaskError(f"{name}: expected 1 or more, found {value}; raise it")
    if letters_per_position > alphabet_size:
        raise TaskError(
            f"letters_per_position: expected at most alphabet_size={alphabet_size}, found {letters_per_position}; "
            "lower it or raise alphabet_size"
        )
    if style not in STYLES:
        raise TaskError(f"style: expected one of {', '.join(STYLES)}, found {style!r}{nearest_name(style, STYLES)}")
    # two generators, so that the tables stay the same when only the expressions' style changes
    for_expressions, for_tables = (np.random.default_rng(child) for child in np.random.SeedSequence(seed).spawn(2))
    candidates = STYLES[style](for_expressions, letters_of(alphabet_size), instruction_length, letters_per_position)
    patterns = [_pattern_of(classes) for classes in _draw_apart(candidates, n_tasks * n_distributions)]
    # shuffled, because the ones drawn first had more room than the ones drawn last
    shuffled = [patterns[index] for index in for_expressions.permutation(len(patterns))]
    tables = _draw_tables(n_tasks, n_inputs, n_outputs, tasks_per_output_min, for_tables)
    tasks = (
        Task(f"t{task}", tuple(shuffled[task * n_distributions : (task + 1) * n_distributions]), tables[task])
        for task in range(n_tasks)
    )
    taskset = TaskSet(
        inputs=tuple(f"i{index}" for index in range(n_inputs)),
        outputs=tuple(f"o{index}" for index in range(n_outputs)),
        lengths=(instruction_length,),
        tasks=tuple(tasks),
    )
    taskset.check()
    return taskset


def letters_of(alphabet_size: int) -> tuple[str, ...]:
    """Give the first letters of a to z, A to Z, 0 to 9, then the letters of Unicode from À on.

    Errors: TaskError if there are not so many
    """
    # no letter has a meaning in a regular expression; the range ends where lone surrogates begin
    further = (chr(code) for code in range(0xC0, 0xD800) if chr(code).isalpha())
    letters: list[str] = []
    for letter in chain(string.ascii_lowercase, string.ascii_uppercase, string.digits, further):
        if len(letters) == alphabet_size:
            break
        letters.append(letter)
    if len(letters) < alphabet_size:
        raise TaskError(f"alphabet_size: expected at most {len(letters)}, found {alphabet_size}; lower it")
    return tuple(letters)


def draw_positions(
    rng: np.random.Generator, letters: Sequence[str], length: int, letters_per_position: int
) -> Iterator[Classes]:
    """Draw an own class at every position, independently."""
    while True:
        yield tuple(_draw_class(rng, letters, letters_per_position) for _ in range(length))


def draw_constant(
    rng: np.random.Generator, letters: Sequence[str], length: int, letters_per_position: int
) -> Iterator[Classes]:
    """Draw one class for all positions; classes come from cutting up a shuffled alphabet, so that most can be used."""
    while True:
        for block in _draw_blocks(rng, letters, letters_per_position):
            yield (block,) * length


def draw_blocks(
    rng: np.random.Generator, letters: Sequence[str], length: int, letters_per_position: int
) -> Iterator[Classes]:
    """Cut the alphabet up once for each position, then draw a block at each; fits where "positions" finds no room."""
    blocks = [_draw_blocks(rng, letters, letters_per_position) for _ in range(length)]
    while True:
        yield tuple(position[rng.integers(len(position))] for position in blocks)


# a new style is one more function here: an endless supply of candidates, of which those that overlap are dropped
STYLES: dict[str, Style] = {"positions": draw_positions, "constant": draw_constant, "blocks": draw_blocks}


def _draw_class(rng: np.random.Generator, letters: Sequence[str], n: int) -> frozenset[str]:
    return frozenset(letters[index] for index in rng.choice(len(letters), size=n, replace=False))


def _draw_blocks(rng: np.random.Generator, letters: Sequence[str], n: int) -> list[frozenset[str]]:
    shuffled = [letters[index] for index in rng.permutation(len(letters))]
    return [frozenset(shuffled[begin : begin + n]) for begin in range(0, len(letters) - n + 1, n)]


def _draw_apart(candidates: Iterator[Classes], n: int) -> list[Classes]:
    """Take candidates until n of them share no string pairwise: some position's classes have no letter in common."""
    taken: list[Classes] = []
    refused = 0
    while len(taken) < n:
        candidate = next(candidates)
        if all(any(map(frozenset.isdisjoint, candidate, other)) for other in taken):
            taken.append(candidate)
            refused = 0
            continue
        refused += 1
        if refused == MAX_REDRAWS:
            raise TaskError(
                f"expected {n} expressions that share no string, found only {len(taken)} before {MAX_REDRAWS} draws in "
                "a row overlapped; raise alphabet_size or instruction_length, lower letters_per_position, n_tasks or "
                "n_distributions, or use style 'blocks'"
            )
    return taken


def _pattern_of(classes: Classes) -> str:
    """Write classes as a regular expression, equal neighbours as one class with a repeat count."""
    parts = []
    for letters, run in groupby(classes):
        repeats = len(list(run))
        parts.append(f"[{''.join(sorted(letters))}]" + (f"{{{repeats}}}" if repeats > 1 else ""))
    return "".join(parts)


def _draw_tables(
    n_tasks: int, n_inputs: int, n_outputs: int, tasks_per_output_min: int, rng: np.random.Generator
) -> list[tuple[int, ...]]:
    n_used = min(n_outputs, max(2, n_tasks // tasks_per_output_min), n_tasks)
    if n_used**n_inputs < n_tasks:
        raise TaskError(
            f"expected {n_tasks} different tables, but {n_used} outputs for each of {n_inputs} inputs give only "
            f"{n_used**n_inputs}; raise n_inputs or n_outputs, or lower n_tasks or tasks_per_output_min"
        )
    columns: list[list[int]] = []
    supply: list[int] = []
    for _ in range(n_inputs):
        used: list[int] = []
        while len(used) < n_used:
            # a new round of all outputs begins when one is dealt out; what this input holds already waits for the next
            if all(output in used for output in supply):
                supply += [int(output) for output in rng.permutation(n_outputs)]
            fresh = next(output for output in supply if output not in used)
            supply.remove(fresh)
            used.append(fresh)
        # the first of `used` get one task more where n_tasks / n_used is not whole; their order is random
        columns.append([used[place % n_used] for place in rng.permutation(n_tasks)])
    _make_different(columns, rng)
    return list(zip(*columns, strict=True))


def _make_different(columns: list[list[int]], rng: np.random.Generator) -> None:
    """Swap outputs of one input between tasks until no two tasks' tables are equal; each input keeps its balance."""
    n_inputs, n_tasks = len(columns), len(columns[0])
    for _ in range(MAX_SWAPS):
        tables = list(zip(*columns, strict=True))
        n_different = len(set(tables))
        if n_different == n_tasks:
            return
        first = {table: task for task, table in reversed(list(enumerate(tables)))}
        repeated = [task for task, table in enumerate(tables) if first[table] != task]
        one, other, column = rng.choice(repeated), rng.integers(n_tasks), columns[rng.integers(n_inputs)]
        column[one], column[other] = column[other], column[one]
        if len(set(zip(*columns, strict=True))) < n_different:
            column[one], column[other] = column[other], column[one]
    raise TaskError(
        f"found no {n_tasks} different balanced tables for {n_inputs} inputs in {MAX_SWAPS} swaps; raise n_inputs or "
        "n_outputs, or lower n_tasks"
    )
