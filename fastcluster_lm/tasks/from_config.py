"""The task set that a config asks for, and how it is shown to a person; it draws nothing itself."""

import numpy as np

from fastcluster_lm.config import TasksConfig
from fastcluster_lm.tasks.files import load_taskset
from fastcluster_lm.tasks.generate import generate_taskset
from fastcluster_lm.tasks.taskset import TaskSet


def taskset_of(config: TasksConfig, seed: int) -> TaskSet:
    """Read or generate the task set a config asks for; either checks it. `seed` counts unless the config has its own.

    Errors: TaskError naming the key at fault
    """
    if config.file:
        return load_taskset(config.file)
    return generate_taskset(
        n_tasks=config.n_tasks,
        n_distributions=config.n_distributions,
        n_inputs=config.n_inputs,
        n_outputs=config.n_outputs,
        instruction_length=config.instruction_length,
        alphabet_size=config.alphabet_size,
        letters_per_position=config.letters_per_position,
        tasks_per_output_min=config.tasks_per_output,
        style=config.style,
        seed=seed if config.seed < 0 else config.seed,
    )


def describe_taskset(taskset: TaskSet) -> list[dict[str, object]]:
    """Give a row for each distribution: its task, expression, number of instructions, an example, and the table."""
    rng = np.random.default_rng(0)
    rows: list[dict[str, object]] = []
    for index, (task, expression) in enumerate(taskset.distributions):
        answers = (taskset.outputs[output] for output in taskset.tasks[task].table)
        rows.append(
            {
                "task": taskset.tasks[task].name,
                "distribution": index,
                "expression": expression.pattern,
                "instructions": sum(expression.count(length) for length in taskset.lengths),
                "example": expression.sample(taskset.lengths[0], 1, rng)[0],
                "table": " ".join(f"{given}→{answer}" for given, answer in zip(taskset.inputs, answers, strict=True)),
            }
        )
    return rows
