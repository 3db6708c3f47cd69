"""Corrections that hold in one context only, one after the other: through the clusters, or by fine-tuning?"""

import copy
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import torch
from jaxtyping import Bool
from torch import Tensor

from fastcluster_lm.config import RunConfig
from fastcluster_lm.data import BatchSampler, Instances
from fastcluster_lm.engine import Rooms, start_run
from fastcluster_lm.model import GPT2, Evaluator
from fastcluster_lm.studies.cells import preset_config
from fastcluster_lm.studies.corrections import BATCH, CHUNK, STEPS, answer, pulling
from fastcluster_lm.studies.phases import descend
from fastcluster_lm.studies.reading import mean, open_run, trained_rooms
from fastcluster_lm.studies.relabelled import only, relabel, where_answers_differ
from fastcluster_lm.studies.study import Arm, Lines, Measured, Options, Row, Study
from fastcluster_lm.tasks import TaskSet, taskset_of

# letters before every instruction; corrections hold after the second
CONTEXTS = "89"
# (source, target), in this order
CORRECTIONS = ((0, 1), (2, 3))
METHODS = ("clusters", "fine-tuning")
# not searched
LEARNING_RATE = 1e-3
# what a method is judged by, once all corrections are made
PARTS = ("first correction", "second correction", "sources in the other context", "other tasks")


def train_with_contexts(config: RunConfig, folder: Path, options: Options) -> None:
    """Train on the preset's tasks with a context letter before every instruction, which means nothing yet."""
    start_run(Rooms(config, with_contexts(taskset_of(config.tasks, config.seed))), folder / "run")


def with_contexts(taskset: TaskSet) -> TaskSet:
    """Put one of two letters before every instruction."""
    tasks = tuple(
        replace(task, expressions=tuple(f"[{CONTEXTS}]{pattern}" for pattern in task.expressions))
        for task in taskset.tasks
    )
    return replace(taskset, tasks=tasks, lengths=tuple(length + 1 for length in taskset.lengths))


def _arms(preset: str) -> Mapping[str, Arm]:
    data = preset_config(preset, 0).data
    settings = (
        f"data.n_train_instructions={2 * data.n_train_instructions}",
        f"data.n_val_instructions={2 * data.n_val_instructions}",
        "probe.every=0",
    )
    return {"contexts": Arm(settings, train_with_contexts, cost=0.8)}


def _measure(cells: Mapping[str, Path]) -> Measured:
    rooms = trained_rooms(cells["contexts"])
    rows = [row for method in METHODS for row in corrected_rows(rooms, method)]
    beside: dict[str, float | None] = {
        f"{row['part']}, {row['method']}": row["share"] for row in rows if row["after"] == len(CORRECTIONS)
    }
    beside |= {f"interference with the first, {method}": interference(rows, method) for method in METHODS}
    beside["accuracy before"] = float((open_run(cells["contexts"]).summary() or {})["val_accuracy"])  # type: ignore[arg-type]
    return Measured(overall(rows, "clusters"), overall(rows, "fine-tuning"), rows, beside)


def corrected_rows(rooms: Rooms, method: str) -> list[Row]:
    """Make the corrections one after the other on a copy of the model; measure all parts after each."""
    trainer = rooms.trainer
    assert isinstance(trainer.model, GPT2)
    model = copy.deepcopy(trainer.model)
    rows = measured_rows(rooms, model, method, 0)
    for number, (source, target) in enumerate(CORRECTIONS, start=1):
        own = only(trainer.train, source)
        # in the other context the source is to stay what it is, and both methods are told so
        goal = torch.where(in_context(rooms, own), target, source)
        drawn = BatchSampler(len(own), BATCH, rooms.config.seed + number)
        loss = (
            pulling(rooms, model, own, goal, drawn)
            if method == "clusters"
            else _answering(rooms, model, own, goal, drawn)
        )
        descend(model, loss, rooms.config, steps=STEPS, learning_rate=LEARNING_RATE)
        rows += measured_rows(rooms, model, method, number)
    return rows


def measured_rows(rooms: Rooms, model: GPT2, method: str, after: int) -> list[Row]:
    """Give the share of right answers of each part, after so many corrections."""
    val = rooms.trainer.val
    evaluator = Evaluator(model, model, CHUNK, fixed_shape=False)
    sources = torch.tensor([source for source, _ in CORRECTIONS], device=val.task.device)
    inside, is_source = in_context(rooms, val), torch.isin(val.task, sources)
    parts = {
        PARTS[2]: val.select((is_source & ~inside).nonzero()[:, 0]),
        PARTS[3]: val.select((~is_source).nonzero()[:, 0]),
    }
    for name, (source, target) in zip(PARTS, CORRECTIONS, strict=False):
        own = only(val.select(inside.nonzero()[:, 0]), source)
        parts[name] = where_answers_differ(rooms, relabel(rooms, own, torch.full_like(own.task, target)))
    return [
        {"method": method, "after": after, "part": name, "share": evaluator.accuracy(parts[name])} for name in PARTS
    ]


def in_context(rooms: Rooms, instances: Instances) -> Bool[Tensor, " n"]:
    """Say which instances stand in the context that corrections are for."""
    return instances.tokens[:, 0] == rooms.vocabulary.encode(CONTEXTS[1])[0]


def overall(rows: list[Row], method: str) -> float | None:
    """Average the parts once all corrections are made."""
    return mean(row["share"] for row in rows if row["method"] == method and row["after"] == len(CORRECTIONS))


def interference(rows: list[Row], method: str) -> float | None:
    """Say how much of the first correction the second one takes away."""
    first = {row["after"]: row["share"] for row in rows if row["method"] == method and row["part"] == PARTS[0]}
    return first[1] - first[2]


def _answering(rooms: Rooms, model: GPT2, own: Instances, goal: Tensor, drawn: BatchSampler) -> Callable[[], Tensor]:
    relabelled = relabel(rooms, own, goal)
    return lambda: answer(model, relabelled, drawn.draw())


STUDY = Study(
    name="complex-alignment",
    question="Do corrections through the clusters hold in one context only, and one after the other?",
    claim="Two corrections in one context, one after the other, do better through the clusters than by fine-tuning.",
    statistic="mean over four shares: answers after either correction, sources in the other context, other tasks; by "
    "pulling at the middle layer",
    control="the same by fine-tuning on relabelled instructions of the sources, both contexts",
    margin=0.0,
    arms=_arms,
    measure=_measure,
    figure=Lines("after", "share", "part", only=(("method", "clusters"),)),
)
