"""Do task clusters carry the answer? One task's centroid is put in the place of another's, layer by layer."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor

from fastcluster_lm.engine import Rooms
from fastcluster_lm.model import GPT2
from fastcluster_lm.studies.reading import trained_rooms
from fastcluster_lm.studies.relabelled import output_ids, shuffled_tasks
from fastcluster_lm.studies.states import changed_states, group_means, states_of
from fastcluster_lm.studies.study import BASE, Arm, Lines, Measured, Row, Study


def _arms(preset: str) -> Mapping[str, Arm]:
    return {"base": BASE}


def _measure(cells: Mapping[str, Path]) -> Measured:
    rooms = trained_rooms(cells["base"])
    rows = patched_rows(rooms)
    value, control = best(rows, "follows"), best(rows, "follows_shuffled")
    beside = {
        f"{name}, layer {row['layer']}": row[column]
        for name, column in (("follows", "follows"), ("follows a reassigned move", "follows_shuffled"))
        for row in rows
    }
    return Measured(value, control, rows, beside)


@torch.no_grad()
def patched_rows(rooms: Rooms) -> list[Row]:
    """Move every validation state from its task to the next, and see whose table the answers follow.

    Only instances whose answers differ between the two tasks count. The move at an input is the difference of the
    tasks' centroids over all *other* inputs, so that it cannot carry the answer itself.
    """
    trainer, config, taskset = rooms.trainer, rooms.config.model, rooms.taskset
    train, val = trainer.train, trainer.val
    assert isinstance(trainer.model, GPT2)
    states = states_of(trainer.evaluator, train, n_layers=config.n_layers, d_model=config.d_model)
    toward = (val.task + 1) % taskset.n_tasks
    tables = torch.tensor([task.table for task in taskset.tasks], device=val.task.device)
    outputs = output_ids(rooms)
    wanted, own = tables[toward, val.input], tables[val.task, val.input]
    shuffled = shuffled_tasks(train, rooms.config.seed)
    rows = []
    for layer in range(config.n_layers + 1):
        row: Row = {"layer": layer}
        real = moves(states[layer], train.task, train.input, val.task, toward, val.input)
        null = moves(states[layer], shuffled, train.input, val.task, toward, val.input)
        # as long as the real one, so that only its direction is at stake
        null = null * (real.norm(dim=1) / null.norm(dim=1).clamp_min(1e-9))[:, None]
        for name, move in (("", real), ("_shuffled", null)):
            with changed_states(trainer.model, layer, partial(torch.add, other=move)):
                answers = trainer.model(*val.inputs(torch.arange(len(val), device=val.task.device))).logits.argmax(-1)
            differ = wanted != own
            row[f"follows{name}"] = float((answers == outputs[wanted])[differ].double().mean())
            row[f"stays{name}"] = float((answers == outputs[own])[differ].double().mean())
        rows.append(row)
    return rows


def moves(
    X: Float[Tensor, "m D"],
    task: Int[Tensor, " m"],
    given: Int[Tensor, " m"],
    source: Int[Tensor, " n"],
    target: Int[Tensor, " n"],
    at: Int[Tensor, " n"],
) -> Float[Tensor, "n D"]:
    """Give centroid(target) - centroid(source) over all inputs but the one at hand.

    Shapes: X (m, D) with task (m,) and input (m,); source, target, at (n,) -> (n, D)
    """
    n_tasks, n_inputs = int(max(task.max(), source.max(), target.max())) + 1, int(given.max()) + 1
    cells = group_means(X, task * n_inputs + given, n_tasks * n_inputs).unflatten(0, (n_tasks, n_inputs))
    others = (cells.sum(1, keepdim=True) - cells) / (n_inputs - 1)  # (tasks, inputs, D): the mean over other inputs
    return others[target, at] - others[source, at]


def best(rows: Sequence[Row], column: str) -> float:
    """Give the highest value over layers; the control may choose its layer as freely."""
    return max(row[column] for row in rows)


STUDY = Study(
    name="causality-patching",
    question="Does a state that is moved to another task's cluster give that task's answer?",
    claim="Moving a state from its task's centroid to another's makes the model answer by the other task's table.",
    statistic="share of answers by the other table, where the two differ, at the best layer, validation; centroids are "
    "over the other inputs",
    control="the same with moves as long between centroids of distributions reassigned to tasks at random",
    margin=0.1,
    arms=_arms,
    measure=_measure,
    figure=Lines("layer", "follows", "kind", "follows_shuffled"),
)
