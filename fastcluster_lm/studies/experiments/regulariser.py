"""Is clustering needed? A loss term that dissolves task clusters, or tightens them, and what unseen accuracy does."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor

from fastcluster_lm.config import RunConfig
from fastcluster_lm.engine import Rooms, start_run
from fastcluster_lm.model import GPT2
from fastcluster_lm.store.files import encode_json, read_json, write_new_file
from fastcluster_lm.studies.reading import accuracies, difference, open_run, over_layers, task_rows
from fastcluster_lm.studies.relabelled import shuffled_tasks
from fastcluster_lm.studies.states import kept_states
from fastcluster_lm.studies.statistics import smoothed
from fastcluster_lm.studies.stored import Added
from fastcluster_lm.studies.study import BASE, Arm, Lines, Measured, Options, Row, Study
from fastcluster_lm.tasks import taskset_of

# chosen on seed 100, outside those judged: from 0.3 on nothing is learnt, whatever the labels that are pulled at
STRENGTHS = (-0.3, -0.1, 0.03, 0.1)
# the dose that the verdict is about, and the arm that pulls at no task
JUDGED, SHUFFLED = "0.1", "0.1, shuffled"


def train_regularised(config: RunConfig, folder: Path, options: Options) -> None:
    """Train with strength * contrast added to the loss, at the middle layer; above 0 it dissolves clusters."""
    strength, added = float(options["strength"]), list[float]()
    # a hook keeps the states, and a compiled model sees no hook
    config = replace(config, training=replace(config.training, compile="off"))
    rooms = Rooms(config, taskset_of(config.tasks, config.seed))
    trainer = rooms.trainer
    assert isinstance(trainer.model, GPT2)
    labels = shuffled_tasks(trainer.train, config.seed) if options["shuffled"] else trainer.train.task
    with kept_states(trainer.model, config.model.n_layers // 2) as kept:

        def term(batch: Tensor) -> Tensor:
            value = strength * task_contrast(kept[0], labels[batch], trainer.train.input[batch])
            added.append(float(value.detach()))
            return value

        trainer.extra_loss = term
        start_run(rooms, folder / "run")
    write_new_file(folder / "added.json", encode_json({"added": added}, "added losses"))


def task_contrast(X: Float[Tensor, "B D"], task: Int[Tensor, " B"], given: Int[Tensor, " B"]) -> Tensor:
    """Give the mean cosine of pairs of one task less that of pairs of two, among pairs of one input: 0 is no cluster.

    Shapes: X (B, D), task (B,), given (B,) inputs -> a scalar in [-2, 2]; 0 where either kind of pair is missing
    """
    n = len(X)
    # what all states of an input share is taken out, since it would make every cosine 1
    same_input = (given[:, None] == given[None, :]).to(X.dtype)
    centred = torch.nn.functional.normalize(X - same_input @ X / same_input.sum(1, keepdim=True), dim=1, eps=1e-6)
    cosine = centred @ centred.T
    pairs = same_input.bool() & ~torch.eye(n, dtype=torch.bool, device=X.device)
    same, other = pairs & (task[:, None] == task[None, :]), pairs & (task[:, None] != task[None, :])
    if not bool(same.any()) or not bool(other.any()):
        return X.sum() * 0
    return cosine[same].mean() - cosine[other].mean()


def _arms(preset: str) -> Mapping[str, Arm]:
    arms = {"0": BASE}
    for strength in STRENGTHS:
        arms[f"{strength:g}"] = Arm((), train_regularised, (("strength", strength), ("shuffled", 0)))
    arms[SHUFFLED] = Arm((), train_regularised, (("strength", float(JUDGED)), ("shuffled", 1)))
    return arms


def _measure(cells: Mapping[str, Path]) -> Measured:
    losses, accuracy, rows = {}, {}, list[Row]()
    for name, cell in cells.items():
        folder = open_run(cell)
        extra = read_json(cell / "added.json", Added)["added"] if (cell / "added.json").exists() else None
        plain = [row["loss"] for row in folder.steps() if row["loss"] is not None]
        losses[name] = smoothed(
            {step: loss - (extra[step - 1] if isinstance(extra, list) else 0) for step, loss in enumerate(plain, 1)}
        )
        accuracy[name] = accuracies(folder.steps())
        by_step = over_layers(task_rows(folder.scores()), "ari")
        rows += [
            {
                "strength": name,
                "step": step,
                "loss": losses[name].get(step),
                "val_accuracy": value,
                "ari": by_step.get(step),
            }
            for step, value in accuracy[name].items()
        ]
    matched = at_equal_loss(losses, accuracy)
    beside: dict[str, float | None] = {
        f"accuracy at equal loss, strength {name}": value for name, value in matched.items()
    }
    beside |= {f"accuracy at the end, strength {name}": curve[max(curve)] for name, curve in accuracy.items()}
    last = max(row["step"] for row in rows)
    beside |= {f"ARI at the end, strength {row['strength']}": row["ari"] for row in rows if row["step"] == last}
    lost = {name: difference(matched["0"], matched[name]) for name in (JUDGED, SHUFFLED)}
    note = (
        "A strength above 0 dissolves clusters of tasks, or of the reassigned distributions; one below 0 tightens them."
    )
    return Measured(lost[JUDGED], lost[SHUFFLED], rows, beside, note)


def at_equal_loss(
    losses: Mapping[str, Mapping[int, float]], accuracy: Mapping[str, Mapping[int, float]]
) -> dict[str, float | None]:
    """Give each arm's validation accuracy where its training loss comes down to one that all arms reach.

    Between two validations both are taken to go along a straight line
    """
    level = max(min(curve[step] for step in set(curve) & set(accuracy[name])) for name, curve in losses.items())
    return {name: _crossing(curve, accuracy[name], level) for name, curve in losses.items()}


def _crossing(loss: Mapping[int, float], accuracy: Mapping[int, float], level: float) -> float | None:
    before: int | None = None
    for step in sorted(set(loss) & set(accuracy)):
        if loss[step] > level:
            before = step
        elif before is None:
            return accuracy[step]
        else:
            share = (loss[before] - level) / (loss[before] - loss[step])
            return accuracy[before] + share * (accuracy[step] - accuracy[before])
    return None


STUDY = Study(
    name="causality",
    question="Are task clusters needed for unseen accuracy, at the same training loss?",
    claim="Dissolving task clusters costs accuracy on unseen instructions at equal training loss.",
    statistic="validation accuracy lost at equal training loss to a loss term that dissolves the task clusters of the "
    f"middle layer, strength {JUDGED}",
    control="the same with distributions reassigned to tasks at random",
    margin=0.0,
    arms=_arms,
    measure=_measure,
    figure=Lines("step", "val_accuracy", "strength"),
)
