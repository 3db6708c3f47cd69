"""Which settings let the task rather than the input or the output dominate the space? One is changed at a time."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from fastcluster_lm.studies.cells import preset_config
from fastcluster_lm.studies.reading import accuracies, difference, mean, open_run, task_rows
from fastcluster_lm.studies.study import BASE, Arm, Lines, Measured, Row, Study

LABELS = ("task", "input", "output")


def _arms(preset: str) -> Mapping[str, Arm]:
    tasks = preset_config(preset, 0).tasks
    # distributions may take letters of their own, so the alphabet grows with their number
    letters = f"tasks.alphabet_size={2 * tasks.alphabet_size}"
    changes = {
        "half the inputs": (f"tasks.n_inputs={tasks.n_inputs // 2}",),
        "twice the inputs": (f"tasks.n_inputs={2 * tasks.n_inputs}",),
        "two outputs": ("tasks.n_outputs=2",),
        "twice the tasks": (f"tasks.n_tasks={2 * tasks.n_tasks}", letters),
        "twice the distributions": (f"tasks.n_distributions={2 * tasks.n_distributions}", letters),
        "no weight decay": ("training.weight_decay=0.0",),
        "weight decay 1": ("training.weight_decay=1.0",),
        "loss on all tokens": ("training.loss=all",),
    }
    return {"as it is": BASE} | {
        name: Arm(settings, cost=2.0 if "twice" in name else 1.0) for name, settings in changes.items()
    }


def _measure(cells: Mapping[str, Path]) -> Measured:
    rows: list[Row] = []
    beside: dict[str, float | None] = {}
    for name, cell in cells.items():
        folder = open_run(cell)
        found = last_scores(folder.scores())
        accuracy = accuracies(folder.steps())
        rows += [{"condition": name, "labels": labels, "ari": value} for labels, value in found.items()]
        beside |= {f"dominance, {name}": dominance(found), f"accuracy, {name}": accuracy[max(accuracy)]}
    return Measured(beside["dominance, twice the inputs"], beside["dominance, as it is"], rows, beside)


def last_scores(scores: Sequence[Row]) -> dict[str, float | None]:
    """Give the ARI over all points of the last probe by kind of label, validation, mean over layers 1 and up."""
    found = {}
    for labels in LABELS:
        rows = task_rows(scores, group="all", labels=labels)
        last = max(row["step"] for row in rows)
        found[labels] = mean(row["ari"] for row in rows if row["step"] == last and row["layer"] > 0)
    return found


def dominance(ari: Mapping[str, float | None]) -> float | None:
    """Say how far the task's ARI is above the larger of the input's and the output's."""
    others = [value for name, value in ari.items() if name != "task" and value is not None]
    return difference(ari["task"], max(others) if others else None)


STUDY = Study(
    name="conditions",
    question="Which settings let the task rather than the input or the output dominate the space?",
    claim="With twice the inputs a task, the task dominates the space more.",
    statistic="task ARI over all points less the larger of input and output ARI, with twice the inputs, at the end, "
    "validation, mean over layers 1 and up",
    control="the same with the preset's inputs",
    margin=0.0,
    arms=_arms,
    measure=_measure,
    figure=Lines("condition", "ari", "labels"),
)
