"""Does pre-training on task identities speed up and improve what is learnt after it, for the same total compute?"""

from collections.abc import Mapping
from pathlib import Path

from fastcluster_lm.config import RunConfig
from fastcluster_lm.store.files import encode_json, fitting, read_json, write_new_file
from fastcluster_lm.studies.phases import first_reaching, fit, rooms_without_probe
from fastcluster_lm.studies.reading import difference
from fastcluster_lm.studies.relabelled import asking, output_ids, with_identities
from fastcluster_lm.studies.stored import Curves
from fastcluster_lm.studies.study import Arm, Lines, Measured, Options, Row, Study
from fastcluster_lm.tasks import taskset_of

KINDS = ("identity", "shuffled", "answers")
# of the control's final accuracy
SHARE = 0.95


def pretrain_and_finetune(config: RunConfig, folder: Path, options: Options) -> None:
    """Spend half the steps on `kind` (identities, identities of reassigned distributions, or answers), half on answers.

    The identity is asked for where the answer is, at the input token, and has tokens of its own.
    """
    taskset = taskset_of(config.tasks, config.seed)
    rooms = rooms_without_probe(config, with_identities(taskset))
    train, val, outputs = rooms.trainer.train, rooms.trainer.val, output_ids(rooms)
    before = [train, val]
    if options["kind"] != "answers":
        before = [asking(str(options["kind"]), own, outputs, taskset.n_outputs, config.seed) for own in before]
    half = config.training.steps // 2
    first = fit(rooms.trainer.model, before[0], before[1], config, steps=half)
    second = fit(rooms.trainer.model, train, val, config, steps=config.training.steps - half)
    curves = {"pretraining": _plain(first.accuracy), "finetuning": _plain(second.accuracy)}
    write_new_file(folder / "curves.json", encode_json(curves, "curves"))


def _plain(accuracy: Mapping[int, float]) -> dict[str, float]:
    return {str(step): value for step, value in accuracy.items()}


def read_curve(cell: Path, name: str) -> dict[int, float]:
    """Read a curve of a cell: accuracy by step."""
    path = cell / "curves.json"
    stored = read_json(path, Curves)
    with fitting(path):
        if name not in stored:
            raise ValueError(f"expected a curve {name}, found {', '.join(stored) or 'none'}")
        return {int(step): float(value) for step, value in stored[name].items()}


def _arms(preset: str) -> Mapping[str, Arm]:
    return {
        kind: Arm(("training.eval_every=10",), pretrain_and_finetune, (("kind", kind),), cost=0.7) for kind in KINDS
    }


def _measure(cells: Mapping[str, Path]) -> Measured:
    curves = {kind: read_curve(cell, "finetuning") for kind, cell in cells.items()}
    before = {kind: read_curve(cell, "pretraining") for kind, cell in cells.items()}
    rows: list[Row] = []
    for kind, curve in curves.items():
        rows += [{"pretraining": kind, "step": step, "val_accuracy": value} for step, value in curve.items()]
    value, control = saved(curves["identity"], curves["shuffled"])
    beside: dict[str, float | None] = {}
    for kind, curve in curves.items():
        beside[f"final accuracy, {kind}"] = curve[max(curve)]
        beside[f"accuracy of pre-training, {kind}"] = before[kind][max(before[kind])]
    final = {kind: beside[f"final accuracy, {kind}"] for kind in KINDS}
    beside["final accuracy gained over shuffled"] = difference(final["identity"], final["shuffled"])
    beside["final accuracy gained over answers alone"] = difference(final["identity"], final["answers"])
    return Measured(value, control, rows, beside)


def saved(curve: dict[int, float], control: dict[int, float]) -> tuple[float, float]:
    """Give the share of fine-tuning that is left once 95 % of the control's final accuracy is reached, for both."""
    level, end = SHARE * control[max(control)], max(control)
    steps = [first_reaching(one, level) for one in (curve, control)]
    one, other = (1 - (end if step is None else step) / end for step in steps)
    return one, other


STUDY = Study(
    name="identity-pretraining",
    question="Does pre-training on task identities speed up and improve fine-tuning, at equal total compute?",
    claim="After pre-training on task identities, fine-tuning reaches its accuracy sooner.",
    statistic="share of fine-tuning left once 95 % of the control's final validation accuracy is reached",
    control="the same after pre-training on identities of distributions reassigned to tasks at random",
    margin=0.0,
    arms=_arms,
    measure=_measure,
    figure=Lines("step", "val_accuracy", "pretraining"),
)
