"""Do instructions that were moved letter by letter toward another task still join their own?"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fastcluster_lm.data import Instances, build_instances, split_instructions
from fastcluster_lm.engine import Rooms
from fastcluster_lm.scores.engines.params import NeighborsParams
from fastcluster_lm.studies.reading import mean, trained_rooms
from fastcluster_lm.studies.relabelled import output_ids
from fastcluster_lm.studies.states import group_means, states_of
from fastcluster_lm.studies.study import BASE, Arm, Lines, Measured, Row, Study
from fastcluster_lm.tasks import TaskSet


def _arms(preset: str) -> Mapping[str, Arm]:
    return {"base": BASE}


def _measure(cells: Mapping[str, Path]) -> Measured:
    rooms = trained_rooms(cells["base"])
    config = rooms.config
    val = split_instructions(
        rooms.taskset, n_train=config.data.n_train_instructions, n_val=config.data.n_val_instructions, seed=config.seed
    ).val
    rows: list[Row] = []
    for grade in range(rooms.taskset.lengths[0] + 1):
        perturbed, toward = perturb(rooms.taskset, val, grade=grade, seed=config.seed)
        rows += graded_rows(rooms, perturbed, toward, grade)
    value, control = joins(rows, 1)
    return Measured(value, control, rows, {"grade at which the other task takes over": breaking_grade(rows)})


def perturb(
    taskset: TaskSet, instructions: Sequence[Sequence[str]], *, grade: int, seed: int
) -> tuple[list[list[str]], list[list[int]]]:
    """Put `grade` letters of another task's distribution in the place of an instruction's own, at random positions.

    Shapes: instructions by distribution -> as many, and the task that each was moved toward
    Errors: TaskError if a distribution has no string of the instruction's length
    """
    rng = np.random.default_rng(seed)
    texts: list[list[str]] = []
    toward: list[list[int]] = []
    for (task, _), own in zip(taskset.distributions, instructions, strict=True):
        foreign = [(other, expression) for other, expression in taskset.distributions if other != task]
        texts.append([])
        toward.append([])
        for text in own:
            other, expression = foreign[rng.integers(len(foreign))]
            drawn = expression.sample(len(text), 1, rng)[0]
            moved = set(rng.permutation(len(text))[:grade].tolist())
            texts[-1].append("".join(drawn[i] if i in moved else text[i] for i in range(len(text))))
            toward[-1].append(other)
    return texts, toward


def graded_rows(
    rooms: Rooms, instructions: Sequence[Sequence[str]], toward: Sequence[Sequence[int]], grade: int
) -> list[Row]:
    """Measure one grade: answers, neighbours and centroids by either task, and the distance from the originals."""
    trainer, config, device = rooms.trainer, rooms.config.model, rooms.device.torch_device
    hard = build_instances(rooms.taskset, instructions, rooms.vocabulary, device)
    other = torch.tensor([task for own in toward for task in own], device=device).repeat_interleave(
        rooms.taskset.n_inputs
    )
    tables = torch.tensor([task.table for task in rooms.taskset.tasks], device=device)
    as_other = replace(hard, targets=output_ids(rooms)[tables[other, hard.input]])
    accuracy, accuracy_other = trainer.evaluator.accuracy(hard), trainer.evaluator.accuracy(as_other)
    sizes = {"n_layers": config.n_layers, "d_model": config.d_model}
    states, bank = states_of(trainer.evaluator, hard, **sizes), states_of(trainer.evaluator, trainer.train, **sizes)
    originals = states_of(trainer.evaluator, trainer.val, **sizes)
    near = rooms.engine.neighbors(states, bank, NeighborsParams(rooms.config.scores.n_neighbors)).indices
    found = trainer.train.task[near]  # (layers, n, k)
    cell, bank_cell = hard.input, trainer.train.task * rooms.taskset.n_inputs + trainer.train.input
    rows = []
    for layer in range(len(states)):
        centers = group_means(bank[layer], bank_cell, rooms.taskset.n_tasks * rooms.taskset.n_inputs)
        apart = [
            (states[layer] - centers[task * rooms.taskset.n_inputs + cell]).norm(dim=1) for task in (hard.task, other)
        ]
        moved = (states[layer] - originals[layer]).norm(dim=1).mean()
        rows.append(
            {
                "grade": grade,
                "layer": layer,
                "accuracy": accuracy,
                "accuracy_other": accuracy_other,
                "own_share": _share(found[layer], hard.task),
                "other_share": _share(found[layer], other),
                "nearer_to_own": float((apart[0] < apart[1]).double().mean()),
                # in units of the originals' own spread around their centroids
                "moved": float(moved / _spread(originals[layer], centers, trainer.val, rooms)),
            }
        )
    return rows


def joins(rows: Sequence[Row], grade: int) -> tuple[float | None, float | None]:
    """Give the shares of neighbours of the own and of the other task at a grade, mean over layers 1 and up."""
    chosen = [row for row in rows if row["grade"] == grade and row["layer"] > 0]
    return mean(row["own_share"] for row in chosen), mean(row["other_share"] for row in chosen)


def breaking_grade(rows: Sequence[Row]) -> float | None:
    """Give the first grade at which the other task holds more neighbours than the own; None if none does."""
    for grade in sorted({row["grade"] for row in rows}):
        own, other = joins(rows, grade)
        if own is not None and other is not None and other > own:
            return float(grade)
    return None


def _share(found: Tensor, wanted: Tensor) -> float:
    return float((found == wanted[:, None]).double().mean())


def _spread(states: Tensor, centers: Tensor, instances: Instances, rooms: Rooms) -> Tensor:
    own = centers[instances.task * rooms.taskset.n_inputs + instances.input]
    return (states - own).norm(dim=1).mean().clamp_min(1e-9)


STUDY = Study(
    name="hard-examples",
    question="Do instructions moved toward another task still join their own, and at what grade does it break?",
    claim="An instruction with one letter of another task's still lies among training states of its own task.",
    statistic="share of own-task training neighbours with one letter moved, mean over layers 1 and up",
    control="share of neighbours of the task that it was moved toward",
    margin=0.0,
    arms=_arms,
    measure=_measure,
    figure=Lines("grade", "own_share", "layer", "other_share"),
)
