"""Are there clusters of instruction distributions inside the clusters of a task and input?"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from fastcluster_lm.engine import Rooms
from fastcluster_lm.studies.reading import mean, trained_rooms, untrained_rooms
from fastcluster_lm.studies.states import score_states, states_of
from fastcluster_lm.studies.study import BASE, Arm, Lines, Measured, Row, Study

PLAN = (("task_input", "distribution"), ("input", "task"), ("input", "distribution"))


def _arms(preset: str) -> Mapping[str, Arm]:
    return {"base": BASE}


def _measure(cells: Mapping[str, Path]) -> Measured:
    rows = [
        {"model": name, **row}
        for name, rooms in (("untrained", untrained_rooms(cells["base"])), ("trained", trained_rooms(cells["base"])))
        for row in nested_rows(rooms)
    ]
    value, control = (inside_tasks(rows, model) for model in ("trained", "untrained"))
    beside = {
        f"ARI of distributions inside tasks {row['model']}, layer {row['layer']}": row["ari"]
        for row in rows
        if row["group"] == "task_input"
    }
    return Measured(value, control, rows, beside)


def nested_rows(rooms: Rooms) -> list[Row]:
    """Score validation states by distribution inside each (task, input), and by task and distribution inside inputs."""
    trainer, config = rooms.trainer, rooms.config.model
    instances = {"train": trainer.train, "val": trainer.val}
    states = {
        name: states_of(trainer.evaluator, own, n_layers=config.n_layers, d_model=config.d_model)
        for name, own in instances.items()
    }
    rows = score_states(states, instances, rooms.engine, n_inputs=rooms.taskset.n_inputs, plan=PLAN)
    names = ("split", "layer", "group", "labels", "ari", "ami", "knn_share")
    return [{name: row[name] for name in names} for row in rows if row["split"] == "val"]


def inside_tasks(rows: Sequence[Row], model: str) -> float | None:
    """Average the ARI of distributions inside tasks and inputs over the layers above the embedding."""
    return mean(
        row["ari"] for row in rows if row["group"] == "task_input" and row["layer"] > 0 and row["model"] == model
    )


STUDY = Study(
    name="subclusters",
    question="Are there clusters of instruction distributions inside task clusters, and at which layers?",
    claim="Inside a task's points of one input, training makes instruction distributions form clusters of their own.",
    statistic="ARI of distributions within task and input after training, validation, mean over layers 1 and up",
    control="the same of the untrained model, which shows what the letters alone give",
    margin=0.0,
    arms=_arms,
    measure=_measure,
    figure=Lines("layer", "ari", "model", only=(("group", "task_input"), ("labels", "distribution"))),
)
