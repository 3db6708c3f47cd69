"""The tasks of one run and the checks that make them well formed; it reads no files and draws no tasks."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from fastcluster_lm.errors import TaskError
from fastcluster_lm.tasks.expressions import Expression

# letters of an instruction; its strings are counted letter by letter
LONGEST = 1000


@dataclass(frozen=True)
class Task:
    """A lookup function from inputs to outputs, asked for by instructions that match one of its expressions."""

    name: str
    expressions: tuple[str, ...]  # one regular expression for each instruction distribution
    table: tuple[int, ...]  # table[i] is the index into outputs of the answer to inputs[i]


@dataclass(frozen=True)
class TaskSet:
    """The tasks that share one vocabulary.

    The letters of the instructions, the inputs and the outputs are tokens. An input or output is one token, whatever
    its length; one that equals a letter, or an input that equals an output, is the same token, and that is allowed.
    """

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    lengths: tuple[int, ...]  # instruction lengths in letters; every distribution is drawn equally often at each
    tasks: tuple[Task, ...]

    @property
    def n_tasks(self) -> int:
        """Count the tasks."""
        return len(self.tasks)

    @property
    def n_inputs(self) -> int:
        """Count the inputs."""
        return len(self.inputs)

    @property
    def n_outputs(self) -> int:
        """Count the outputs."""
        return len(self.outputs)

    @property
    def n_distributions(self) -> int:
        """Count the instruction distributions of all tasks together."""
        return sum(len(task.expressions) for task in self.tasks)

    @cached_property
    def distributions(self) -> tuple[tuple[int, Expression], ...]:
        """Give (index of the task, expression) of every distribution, task by task.

        Errors: TaskError naming the key of an expression that cannot be read
        """
        return tuple((task, _read_expression(key, pattern)) for key, task, pattern in self._patterns())

    @cached_property
    def alphabet(self) -> tuple[str, ...]:
        """Give the letters of all expressions, sorted."""
        return tuple(sorted(frozenset[str]().union(*(expression.alphabet for _, expression in self.distributions))))

    def sample_instructions(self, n_per_length: int, rng: np.random.Generator) -> tuple[tuple[str, ...], ...]:
        """Draw different instructions for each distribution, n_per_length at each of the lengths.

        Shapes: one tuple for each of `distributions`, holding n_per_length * len(lengths) strings, length by length
        Errors: TaskError naming the key of an expression with fewer than n_per_length strings of some length
        """
        drawn = []
        for (key, _, _), (_, expression) in zip(self._patterns(), self.distributions, strict=True):
            self._check_size(key, expression, n_per_length)
            strings: list[str] = []
            for length in self.lengths:
                strings += expression.sample_distinct(length, n_per_length, rng)
            drawn.append(tuple(strings))
        return tuple(drawn)

    def to_toml_dict(self) -> dict[str, object]:
        """Give the task set as its file would hold it; `taskset_from_dict` reads it back."""
        return {
            "inputs": list(self.inputs),
            "outputs": list(self.outputs),
            "lengths": list(self.lengths),
            "tasks": [
                {
                    "name": task.name,
                    "expressions": list(task.expressions),
                    "table": {name: self.outputs[output] for name, output in zip(self.inputs, task.table, strict=True)},
                }
                for task in self.tasks
            ],
        }

    def check(self, needed_strings: int = 1) -> None:
        """Refuse a task set that cannot be trained on as it is meant.

        Errors: TaskError naming the key at fault: empty or repeated inputs, outputs, lengths or task names; a table
                that does not give each input one of the outputs; an expression that cannot be read, or has fewer than
                needed_strings strings at one of the lengths; two distributions that share a string at one of them
        """
        _check_names("inputs", self.inputs)
        _check_names("outputs", self.outputs)
        self._check_lengths()
        if not self.tasks:
            raise TaskError("tasks: expected at least one task, found none; add a [[tasks]] table")
        names: dict[str, int] = {}
        for index, task in enumerate(self.tasks):
            if not task.name:
                raise TaskError(f"tasks[{index}].name: expected a name, found an empty string; give the task a name")
            first = names.setdefault(task.name, index)
            if first != index:
                raise TaskError(f"tasks[{index}].name: {task.name!r} is the name of tasks[{first}] too; rename one")
            if not task.expressions:
                raise TaskError(f"tasks[{index}].expressions: expected at least one expression, found none; add one")
            self._check_table(index, task.table)
        for (key, _, _), (_, expression) in zip(self._patterns(), self.distributions, strict=True):
            self._check_size(key, expression, needed_strings)
        for length in self.lengths:
            self._check_apart(length)

    def _patterns(self) -> Iterator[tuple[str, int, str]]:
        for index, task in enumerate(self.tasks):
            for place, pattern in enumerate(task.expressions):
                yield f"tasks[{index}].expressions[{place}]", index, pattern

    def _check_lengths(self) -> None:
        if not self.lengths:
            raise TaskError("lengths: expected at least one instruction length, found none; write lengths = [8], say")
        for index, length in enumerate(self.lengths):
            if length < 1:
                raise TaskError(f"lengths[{index}]: expected a length of 1 or more, found {length}; raise it")
            if length > LONGEST:
                raise TaskError(f"lengths[{index}]: expected a length of {LONGEST} or less, found {length}; lower it")
            first = self.lengths.index(length)
            if first != index:
                raise TaskError(f"lengths[{index}]: {length} stands at lengths[{first}] too; name each length once")

    def _check_table(self, task: int, table: tuple[int, ...]) -> None:
        if len(table) != self.n_inputs:
            raise TaskError(
                f"tasks[{task}].table: expected {self.n_inputs} outputs, one for each input, found {len(table)}; "
                "make their numbers match"
            )
        for index, output in enumerate(table):
            if not 0 <= output < self.n_outputs:
                raise TaskError(
                    f"tasks[{task}].table[{index}]: expected an index into outputs, 0 to {self.n_outputs - 1}, "
                    f"found {output}; correct the index or add outputs"
                )

    def _check_size(self, key: str, expression: Expression, needed_strings: int) -> None:
        for length in self.lengths:
            try:
                found = expression.count(length)
            except TaskError as error:
                raise TaskError(f"{key}: {expression.pattern!r}: {error}") from error
            if found < needed_strings:
                raise TaskError(
                    f"{key}: {expression.pattern!r} has {found} strings of length {length}, but {needed_strings} are "
                    "needed; widen the expression, change lengths, or ask for fewer instructions"
                )

    def _check_apart(self, length: int) -> None:
        keys = [key for key, _, _ in self._patterns()]
        expressions = [expression for _, expression in self.distributions]
        for one, other in _candidate_pairs(expressions, length):
            shared = expressions[one].shared_string(expressions[other], length=length)
            if shared is not None:
                raise TaskError(
                    f"{keys[one]} and {keys[other]}: {expressions[one].pattern!r} and {expressions[other].pattern!r} "
                    f"share strings of length {length}, {shared!r} for example; change one so that they share none"
                )


def _candidate_pairs(expressions: Sequence[Expression], length: int) -> list[tuple[int, int]]:
    """Find the pairs of expressions that have a letter in common at every position; all others share no string.

    For runs of letter classes this is already exact, and it costs one small matrix product for each position.
    """
    letters = [expression.letters_by_position(length) for expression in expressions]
    columns = {letter: column for column, letter in enumerate(sorted({x for row in letters for s in row for x in s}))}
    common = np.triu(np.ones((len(expressions), len(expressions)), dtype=bool), 1)
    for position in range(length):
        holds = np.zeros((len(expressions), len(columns)), dtype=np.float32)
        for row, sets in enumerate(letters):
            holds[row, [columns[letter] for letter in sets[position]]] = 1
        common &= holds @ holds.T > 0
    return [(int(one), int(other)) for one, other in np.argwhere(common)]


def _check_names(key: str, names: tuple[str, ...]) -> None:
    if not names:
        raise TaskError(f"{key}: expected at least one name, found none; add some")
    for index, name in enumerate(names):
        if not name:
            raise TaskError(f"{key}[{index}]: expected a token, found an empty string; give it a name")
        first = names.index(name)
        if first != index:
            raise TaskError(f"{key}[{index}]: {name!r} stands at {key}[{first}] too; name each once")


def _read_expression(key: str, pattern: str) -> Expression:
    try:
        return Expression(pattern)
    except TaskError as error:
        raise TaskError(f"{key}: {pattern!r}: {error}") from error
