"""Do task clusters persist as inputs, outputs and alphabet grow tenfold and a hundredfold?"""

from collections.abc import Mapping
from pathlib import Path

from fastcluster_lm.probe import choose_probe_set
from fastcluster_lm.studies.cells import preset_config
from fastcluster_lm.studies.reading import mean, open_run, trained_rooms
from fastcluster_lm.studies.states import score_states, states_of
from fastcluster_lm.studies.study import BASE, Arm, Lines, Measured, Row, Study

# points for each distribution and input: five a label are the least that a group counts with
POINTS = 2


def _arms(preset: str) -> Mapping[str, Arm]:
    config = preset_config(preset, 0)
    inputs, outputs, letters = config.tasks.n_inputs, config.tasks.n_outputs, config.tasks.alphabet_size
    sizes = {
        "inputs x 10": (10 * inputs, outputs, letters),
        "outputs x 10": (inputs, 10 * outputs, letters),
        "alphabet x 10": (inputs, outputs, 10 * letters),
        "all x 10": (10 * inputs, 10 * outputs, 10 * letters),
        "outputs and alphabet x 100": (inputs, 100 * outputs, 100 * letters),
    }
    if preset == "paper":
        sizes["all x 100"] = (100 * inputs, 100 * outputs, 100 * letters)
    grown = {name: _arm(config.training.steps, inputs, *size) for name, size in sizes.items()}
    return {"as it is": BASE} | grown


def _arm(steps: int, inputs: int, n_inputs: int, n_outputs: int, n_letters: int) -> Arm:
    # each mapping is seen less often the more of them there are; three times the steps is what nano's time allows
    longer = 3 if n_inputs > inputs else 1
    return Arm(
        (
            f"tasks.n_inputs={n_inputs}",
            f"tasks.n_outputs={n_outputs}",
            f"tasks.alphabet_size={n_letters}",
            f"training.steps={longer * steps}",
            f"training.eval_every={longer * steps // 5}",
            f"training.checkpoint_every={longer * steps}",
            "probe.every=0",
        ),
        cost=3.0 if longer > 1 else 0.7,
    )


def _measure(cells: Mapping[str, Path]) -> Measured:
    rows: list[Row] = []
    beside: dict[str, float | None] = {}
    found = {}
    for name, cell in cells.items():
        scored = final_rows(cell)
        rows += [{"vocabulary": name, **row} for row in scored]
        found[name] = above_layer_zero(scored)
        beside |= {f"ARI, {name}": found[name][0], f"null ARI, {name}": found[name][1]}
        beside[f"accuracy, {name}"] = float((open_run(cell).summary() or {})["val_accuracy"])  # type: ignore[arg-type]
    value, control = found["all x 10"]
    return Measured(value, control, rows, beside)


def final_rows(cell: Path) -> list[Row]:
    """Score a fixed set of validation states of the trained model, with the block null."""
    rooms = trained_rooms(cell)
    config = rooms.config
    n_points = rooms.taskset.n_distributions * rooms.taskset.n_inputs * POINTS
    sets = {}
    for name, own in (("train", rooms.trainer.train), ("val", rooms.trainer.val)):
        chosen = choose_probe_set(own, n_points=n_points, map_points=n_points, seed=config.probe.seed, split=name)
        sets[name] = chosen.instances
    sizes = {"n_layers": config.model.n_layers, "d_model": config.model.d_model}
    states = {name: states_of(rooms.trainer.evaluator, own, **sizes) for name, own in sets.items()}
    rows = score_states(states, sets, rooms.engine, n_inputs=rooms.taskset.n_inputs)
    names = ("split", "layer", "ari", "null_ari", "knn_share", "null_knn_share")
    return [{name: row[name] for name in names} for row in rows if row["split"] == "val"]


def above_layer_zero(rows: list[Row]) -> tuple[float | None, float | None]:
    """Average the ARI and its block null over the layers above the embedding."""
    above = [row for row in rows if row["layer"] > 0]
    return mean(row["ari"] for row in above), mean(row["null_ari"] for row in above)


STUDY = Study(
    name="vocabulary",
    question="Do task clusters persist as inputs, outputs and alphabet grow tenfold and a hundredfold?",
    claim="Task clusters persist with ten times the inputs, outputs and letters.",
    statistic="task ARI within input and output with all three ten times as large, at the end, validation, mean over "
    "layers 1 and up",
    control="its block null",
    margin=0.1,
    arms=_arms,
    measure=_measure,
    figure=Lines("layer", "ari", "vocabulary", "null_ari"),
)
