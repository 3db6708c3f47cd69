"""Does pre-training on task identities help on tasks outside the pre-training set, from few instructions?"""

import copy
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from fastcluster_lm.config import RunConfig
from fastcluster_lm.data import Instances
from fastcluster_lm.store.files import encode_json, fitting, read_json, write_new_file
from fastcluster_lm.studies.cells import preset_config
from fastcluster_lm.studies.phases import fit, rooms_without_probe
from fastcluster_lm.studies.reading import mean
from fastcluster_lm.studies.relabelled import asking, of_tasks, output_ids, with_identities
from fastcluster_lm.studies.stored import Few
from fastcluster_lm.studies.study import Arm, Lines, Measured, Options, Row, Study
from fastcluster_lm.tasks import taskset_of

KINDS = ("identity", "shuffled", "answers", "none")
# instructions a distribution of the new tasks
FEW = (1, 2, 4, 8)


def pretrain_and_show_few(config: RunConfig, folder: Path, options: Options) -> None:
    """Pre-train on one half of the tasks, then show few instructions of the other, from the same weights each time."""
    taskset = taskset_of(config.tasks, config.seed)
    rooms = rooms_without_probe(config, with_identities(taskset))
    half = taskset.n_tasks // 2
    seen, new = range(half), range(half, taskset.n_tasks)
    before = [of_tasks(own, seen) for own in (rooms.trainer.train, rooms.trainer.val)]
    if options["kind"] in ("identity", "shuffled"):
        outputs = output_ids(rooms)
        before = [asking(str(options["kind"]), own, outputs, taskset.n_outputs, config.seed) for own in before]
    steps = config.training.steps
    model = rooms.trainer.model
    last = 0.0
    if options["kind"] != "none":
        last = fit(model, before[0], before[1], config, steps=steps).accuracy[steps]
    train, val = (of_tasks(own, new) for own in (rooms.trainer.train, rooms.trainer.val))
    found = {"pretraining": last}
    for few in FEW:
        shown = first_instructions(train, config.data.n_train_instructions, few)
        fine = replace(config, training=replace(config.training, eval_every=steps))
        found[str(few)] = fit(copy.deepcopy(model), shown, val, fine, steps=steps // 4).accuracy[steps // 4]
    write_new_file(folder / "few.json", encode_json(found, "few-example curve"))


def first_instructions(instances: Instances, per_distribution: int, few: int) -> Instances:
    """Keep the first instructions of each distribution; they are numbered distribution by distribution."""
    return instances.select((instances.instruction % per_distribution < few).nonzero()[:, 0])


def _arms(preset: str) -> Mapping[str, Arm]:
    tasks = preset_config(preset, 0).tasks
    settings = (f"tasks.n_tasks={2 * tasks.n_tasks}", f"tasks.alphabet_size={2 * tasks.alphabet_size}")
    return {kind: Arm(settings, pretrain_and_show_few, (("kind", kind),), cost=1.0) for kind in KINDS}


def _measure(cells: Mapping[str, Path]) -> Measured:
    found = {kind: _few(cell / "few.json") for kind, cell in cells.items()}
    rows: list[Row] = []
    for kind, values in found.items():
        rows += [{"pretraining": kind, "instructions": few, "val_accuracy": values[str(few)]} for few in FEW]
    beside = {f"mean accuracy, {kind}": few_example_mean(values) for kind, values in found.items()}
    beside |= {f"accuracy of pre-training, {kind}": _number(found[kind]["pretraining"]) for kind in KINDS[:3]}
    return Measured(beside["mean accuracy, identity"], beside["mean accuracy, shuffled"], rows, beside)


def _few(path: Path) -> dict[str, float]:
    stored = read_json(path, Few)
    with fitting(path):
        if missing := [name for name in ("pretraining", *map(str, FEW)) if name not in stored]:
            raise ValueError(f"expected an accuracy of {missing[0]}, found none")
    return stored


def few_example_mean(values: Mapping[str, object]) -> float | None:
    """Average the accuracy over the numbers of instructions shown."""
    return mean(_number(values[str(few)]) for few in FEW)


def _number(value: object) -> float:
    assert isinstance(value, float)
    return value


STUDY = Study(
    name="unseen-tasks",
    question="Does pre-training on task identities help on tasks outside the pre-training set?",
    claim="Pre-training on the identities of some tasks helps to learn other tasks from few instructions.",
    statistic="validation accuracy on the new tasks after few instructions of each, mean over 1, 2, 4 and 8",
    control="the same after pre-training on identities of distributions reassigned to tasks at random",
    margin=0.0,
    arms=_arms,
    measure=_measure,
    figure=Lines("instructions", "val_accuracy", "pretraining"),
)
