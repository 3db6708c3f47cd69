"""Instructions drawn from each distribution and divided into training and validation; none is ever in both."""

from dataclasses import dataclass

import numpy as np

from fastcluster_lm.errors import DataError
from fastcluster_lm.tasks import TaskSet


@dataclass(frozen=True)
class SplitInstructions:
    """Distinct instructions by distribution, in the task set's order of distributions."""

    train: tuple[tuple[str, ...], ...]
    val: tuple[tuple[str, ...], ...]


def split_instructions(taskset: TaskSet, *, n_train: int, n_val: int, seed: int) -> SplitInstructions:
    """Draw `n_train + n_val` distinct instructions a distribution, the same number at each length.

    Errors: DataError if the counts do not divide evenly over the lengths; TaskError if a language is too small
    """
    n_lengths = len(taskset.lengths)
    for name, count in (("data.n_train_instructions", n_train), ("data.n_val_instructions", n_val)):
        if count % n_lengths:
            raise DataError(f"{name}: expected a multiple of the {n_lengths} instruction lengths, got {count}")
    rng = np.random.default_rng(seed)
    per_length, train_per_length = (n_train + n_val) // n_lengths, n_train // n_lengths
    train, val = [], []
    for drawn in taskset.sample_instructions(per_length, rng):
        train_here: list[str] = []
        val_here: list[str] = []
        for start in range(0, len(drawn), per_length):
            shuffled = [drawn[start + i] for i in rng.permutation(per_length)]
            train_here += shuffled[:train_per_length]
            val_here += shuffled[train_per_length:]
        train.append(tuple(train_here))
        val.append(tuple(val_here))
    return SplitInstructions(tuple(train), tuple(val))
