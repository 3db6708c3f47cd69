"""Do task clusters form in training, and go on forming after the early-stopping mark? The shared base runs answer."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from fastcluster_lm.studies.reading import (
    accuracies,
    difference,
    layers_of,
    open_run,
    over_layers,
    pick,
    series,
    task_rows,
)
from fastcluster_lm.studies.statistics import change_point, lead
from fastcluster_lm.studies.study import BASE, Arm, Lines, Measured, Row, Study
from fastcluster_lm.views import settled_step

SCORES = ("f1", "ari", "ami")
# (group, labels) whose curves the rows hold
SHOWN = (("input_output", "task"), ("input", "task"), ("all", "task"), ("all", "input"), ("all", "output"))

PRIMARY = (("space", "hidden"), ("split", "val"), ("group", "input_output"), ("labels", "task"))


# what the columns of times mean
TIMES = (
    "Onset is the probe at which task ARI within input and output changes its level, on validation data; earliest and "
    "latest are the ends of its 95 % bootstrap interval within a seed, averaged over seeds. Settled is the probe from "
    "which on the ARI stays within 5 % of its last value; lead is by how much its changes come before those of "
    "accuracy, at the lag that correlates best."
)


def _arms(preset: str) -> Mapping[str, Arm]:
    return {"base": BASE}


def _measure_rise(cells: Mapping[str, Path]) -> Measured:
    folder = open_run(cells["base"])
    scores, steps = folder.scores(), folder.steps()
    value, control = rise(task_rows(scores))
    beside = {
        f"rise on {split}, {name}": rise(task_rows(scores, split=split), name)[0]
        for split in ("train", "val")
        for name in SCORES
    }
    beside |= {
        f"{name} in steps, layer {layer}": found
        for name, by in timing(task_rows(scores), accuracies(steps)).items()
        for layer, found in by.items()
    }
    return Measured(value, control, curves(scores), beside, TIMES)


def _measure_after(cells: Mapping[str, Path]) -> Measured:
    folder = open_run(cells["base"])
    scores, summary = folder.scores(), folder.summary() or {}
    mark = summary["early_stopping_step"]
    if not isinstance(mark, int):
        return Measured(None, None, curves(scores))
    value, control = gain_after(task_rows(scores), mark)
    beside: dict[str, float | None] = {"step of the early-stopping mark": float(mark)}
    beside |= {
        f"gain on {split}, {name}": gain_after(task_rows(scores, split=split), mark, name)[0]
        for split in ("train", "val")
        for name in SCORES
    }
    at_mark = [value for step, value in accuracies(folder.steps()).items() if step <= mark][-1]
    beside["gain of validation accuracy"] = accuracies(folder.steps())[max(accuracies(folder.steps()))] - at_mark
    return Measured(value, control, curves(scores), beside)


def rise(rows: Sequence[Row], name: str = "ari") -> tuple[float | None, float | None]:
    """Give how far a score and its block null rise from the first probe to the last, averaged over layers."""
    found = []
    for column in (name, f"null_{name}"):
        by_step = over_layers(rows, column)
        found.append(difference(by_step[max(by_step)], by_step[min(by_step)]))
    return found[0], found[1]


def gain_after(rows: Sequence[Row], mark: int, name: str = "ari") -> tuple[float | None, float | None]:
    """Give how far a score and its block null rise from the last probe at the mark to the end, averaged over layers."""
    return rise(
        [row for row in rows if row["step"] >= max(step for step in {row["step"] for row in rows} if step <= mark)],
        name,
    )


def timing(rows: Sequence[Row], accuracy: Mapping[int, float]) -> dict[str, dict[int, float | None]]:
    """Give onset (a change of level), saturation (settled) and lead over accuracy in steps, by layer."""
    found: dict[str, dict[int, float | None]] = {
        "onset": {},
        "earliest onset": {},
        "latest onset": {},
        "settled": {},
        "lead": {},
    }
    for layer in layers_of(rows):
        curve = series(rows, "ari", layer=layer)
        steps, values = list(curve), list(curve.values())
        change = change_point(values)
        for name, place in (("onset", change.at), ("earliest onset", change.low), ("latest onset", change.high)):
            found[name][layer] = float(steps[place])
        settled = settled_step(steps, values)
        found["settled"][layer] = None if settled is None else float(settled)
        shared = [step for step in steps if step in accuracy]
        places = lead([curve[step] for step in shared], [accuracy[step] for step in shared])
        # a lead is meant in steps, which a place stands for where probes are evenly apart
        found["lead"][layer] = None if places is None else float(places * (shared[1] - shared[0]))
    return found


def curves(scores: Sequence[Row]) -> list[Row]:
    """Give the curves of both splits and spaces by layer; a map counts only where it is cold."""
    rows = []
    for group, labels in SHOWN:
        for row in pick(scores, group=group, labels=labels, tier="full"):
            if row["space"] == "hidden" or not row["warm"]:
                place = ("step", "layer", "split", "space", "group", "labels")
                names = (*place, *SCORES, "null_ari", "ceiling_output", "knn_share")
                rows.append({name: row[name] for name in names})
    return rows


RISE = Study(
    name="dynamics",
    question="Do the scores of task clusters rise in training, by layer, on training and validation data?",
    claim="Task clusters form in training: their validation ARI rises by more than the block null's.",
    statistic="rise of task ARI within input and output from step 0 to the end, validation, mean over layers 1 and up",
    control="rise of its block null",
    margin=0.1,
    arms=_arms,
    measure=_measure_rise,
    figure=Lines("step", "ari", "layer", "null_ari", PRIMARY),
)
AFTER = Study(
    name="dynamics-after-stop",
    question="Do task clusters go on forming after the early-stopping mark of validation accuracy?",
    claim="Task clusters go on gaining after the early-stopping mark.",
    statistic="gain of task ARI within input and output from mark to end, validation, mean over layers 1 and up",
    control="gain of its block null",
    margin=0.0,
    arms=_arms,
    measure=_measure_after,
    figure=Lines("step", "ari", "layer", "null_ari", PRIMARY),
)
