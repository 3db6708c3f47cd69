"""Can a source task's instructions be made to act as a target task through the clusters, with less forgotten?"""

import copy
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from fastcluster_lm.data import BatchSampler
from fastcluster_lm.engine import Rooms
from fastcluster_lm.model import GPT2, Evaluator
from fastcluster_lm.studies.corrections import BATCH, CHUNK, STEPS, answer, pulling
from fastcluster_lm.studies.phases import descend
from fastcluster_lm.studies.reading import mean, trained_rooms
from fastcluster_lm.studies.relabelled import only, relabel, where_answers_differ, without
from fastcluster_lm.studies.study import BASE, Arm, Lines, Measured, Row, Study

SOURCE, TARGET = 0, 1
METHODS = ("clusters", "fine-tuning", "replay", "L2 to the start")
# both are tried for every method, and the better counts; on seed 100 all methods reach a success of 0.99 with them
LEARNING_RATES = (3e-4, 1e-3)
LOOK_EVERY = 5
# of success at which what is kept is compared
LEVELS = (0.5, 0.6, 0.7, 0.8, 0.9)
# weight of the squared distance to the start; one value, not searched
L2 = 1.0


def _arms(preset: str) -> Mapping[str, Arm]:
    return {"base": BASE}


def _measure(cells: Mapping[str, Path]) -> Measured:
    rooms = trained_rooms(cells["base"])
    rows = [row for method in METHODS for rate in LEARNING_RATES for row in aligned_rows(rooms, method, rate)]
    scores = {method: kept_at_success(rows, method) for method in METHODS}
    beside: dict[str, float | None] = {f"kept, {method}": value for method, value in scores.items()}
    for method in METHODS:
        beside[f"highest success, {method}"] = max(row["success"] for row in rows if row["method"] == method)
    return Measured(scores["clusters"], scores["fine-tuning"], rows, beside)


def aligned_rows(rooms: Rooms, method: str, rate: float) -> list[Row]:
    """Change a copy of the model by one method, and follow success and what is kept of all other tasks."""
    trainer = rooms.trainer
    assert isinstance(trainer.model, GPT2)
    model = copy.deepcopy(trainer.model)
    source, old = only(trainer.train, SOURCE), without(trainer.train, SOURCE)
    judged, kept = only(trainer.val, SOURCE), without(trainer.val, SOURCE)
    goal = torch.full_like(source.task, TARGET)
    relabelled = relabel(rooms, source, goal)
    judged = where_answers_differ(rooms, relabel(rooms, judged, torch.full_like(judged.task, TARGET)))
    evaluator = Evaluator(model, model, CHUNK, fixed_shape=False)
    rows: list[Row] = []

    def look(step: int) -> None:
        if step % LOOK_EVERY == 0:
            found = {"success": evaluator.accuracy(judged), "kept": evaluator.accuracy(kept)}
            rows.append({"method": method, "learning_rate": rate, "step": step} | found)

    seed = rooms.config.seed
    drawn, replayed = (BatchSampler(len(own), BATCH, seed + i) for i, own in enumerate((relabelled, old)))
    start = [weight.detach().clone() for weight in model.parameters()]
    losses: dict[str, Callable[[], Tensor]] = {
        "clusters": pulling(rooms, model, source, goal, drawn),
        "fine-tuning": lambda: answer(model, relabelled, drawn.draw()),
        "replay": lambda: answer(model, relabelled, drawn.draw()) + answer(model, old, replayed.draw()),
        "L2 to the start": lambda: answer(model, relabelled, drawn.draw()) + L2 * _distance(model, start),
    }
    descend(model, losses[method], rooms.config, steps=STEPS, learning_rate=rate, look=look)
    return rows


def kept_at_success(rows: Sequence[Row], method: str) -> float | None:
    """Average the accuracy kept when success first reaches each level, 0 where it never does; the better rate."""
    found = []
    for rate in sorted({row["learning_rate"] for row in rows}):
        curve = [row for row in rows if row["method"] == method and row["learning_rate"] == rate]
        found.append(mean(next((row["kept"] for row in curve if row["success"] >= level), 0.0) for level in LEVELS))
    return max(value for value in found if value is not None)


def _distance(model: GPT2, start: Sequence[Tensor]) -> Tensor:
    return torch.stack([(w - s).square().sum() for w, s in zip(model.parameters(), start, strict=True)]).sum()


STUDY = Study(
    name="alignment",
    question="Can a source task's instructions be made to act as a target task through the clusters, forgetting less?",
    claim="Pulling a source task's states to a target's centroids changes its answers with less forgetting than "
    "fine-tuning on relabelled data.",
    statistic="validation accuracy kept on all other tasks when the source's success first reaches 0.5 to 0.9, mean "
    "over these levels, 0 where it never does, by pulling at the middle layer; the better of two learning rates",
    control="the same by fine-tuning on the source's instructions with the target's answers",
    margin=0.0,
    arms=_arms,
    measure=_measure,
    figure=Lines("success", "kept", "method", only=(("learning_rate", LEARNING_RATES[-1]),)),
)
