"""Can a source task's instructions be made to act as a target task through the clusters, with less forgotten?"""

import copy
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from fastcluster_lm import align
from fastcluster_lm.data import BatchSampler, Instances
from fastcluster_lm.engine import Rooms
from fastcluster_lm.model import GPT2, Evaluator
from fastcluster_lm.studies.corrections import BATCH, CHUNK, answer, pulling
from fastcluster_lm.studies.phases import descend
from fastcluster_lm.studies.reading import difference, mean, pick, trained_rooms
from fastcluster_lm.studies.relabelled import only, relabel, where_answers_differ, without
from fastcluster_lm.studies.study import BASE, Arm, Lines, Measured, Row, Study

# source and target; a seed's value is the mean over them
PAIRS = ((0, 1), (2, 3), (4, 5), (6, 7))
# of success at which what is kept is compared; the last one is what data is counted for
LEVELS = (0.5, 0.6, 0.7, 0.8, 0.9)
# steps between looks, until the last level is reached and after
LOOK_EVERY, LOOK_LATER = 5, 50
# instances of the source, drawn at random, that may do
FEW = (8, 32, 128)


@dataclass(frozen=True)
class Setting:
    """What a method is given, the same at every judged seed.

    steps, rate: of learning
    weight: of the term that holds what was learnt; of the closed form its ridge
    dial:   where a method without steps ends: the weight of what is held, or the gate's strength
    depth:  of the layer whose states are moved, as a share of all
    """

    steps: int = 300
    rate: float = 0.0
    weight: float = 0.0
    dial: float = 0.0
    depth: float = 0.5


# those that kept most at seeds 500 and 501 (nano), of: rates 1e-4 to 2e-3 with 100 steps, 3e-5 to 1e-4 with 300 (where
# lower rates still helped; not each for every method); weights of L2 0.003 to 1, of distillation and replay 0.3 to 10;
# ridges 1e-6, 1e-4 and 1e-2; depths 0.25, 0.5 and 0.75. The dial's place: the most success less what is forgotten
SETTINGS = {
    "closed form": Setting(weight=1e-4, dial=0.1, depth=0.75),
    "gate": Setting(dial=2.0, depth=0.5),
    "pull": Setting(rate=3e-5),
    "fine-tuning": Setting(rate=3e-5),
    "lower layers alone": Setting(rate=6e-5),
    "L2 to the start": Setting(rate=6e-5, weight=1.0),
    "distillation": Setting(rate=1e-4, weight=10.0),
    "replay": Setting(rate=1e-4, weight=10.0),
}
METHODS = tuple(SETTINGS)
JUDGED, CONTROL, PEER = "closed form", "fine-tuning", "replay"
# what is turned in place of steps, from little success to much
DIALS = {
    "closed form": tuple(10.0 ** (-power / 2) for power in range(-6, 7)),
    "gate": (0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1.0, 1.25, 1.5, 2.0),
}


def _arms(preset: str) -> Mapping[str, Arm]:
    return {"base": BASE}


def _measure(cells: Mapping[str, Path]) -> Measured:
    rooms = trained_rooms(cells["base"])
    rows = [row for pair in PAIRS for method in METHODS for row in aligned_rows(rooms, method, pair)]
    kept = {method: kept_at_success(rows, method) for method in METHODS}
    few = {
        method: data_needed(rooms, method, PAIRS[0], pick(rows, method=method, source=PAIRS[0][0]))
        for method in METHODS
    }
    beside: dict[str, float | None] = {}
    for method in METHODS:
        ends = [row for row in pick(rows, method=method) if row["end"]]
        beside[f"kept, {method}"] = kept[method]
        beside[f"kept less {PEER}'s, {method}"] = difference(kept[method], kept[PEER])
        beside[f"kept less {CONTROL}'s, {method}"] = difference(kept[method], kept[CONTROL])
        beside[f"forgotten at the end, {method}"] = mean(row["forgotten"] for row in ends)
        beside[f"success at the end, {method}"] = mean(row["success"] for row in ends)
        beside |= {f"source instances to {what}, {method}": n for what, n in few[method].items()}
        beside[f"seconds, {method}"] = mean(row["seconds"] for row in ends)
    shown = [
        {"part": "levels", "method": method, "level": level, "kept": kept_at_success(rows, method, (level,))}
        for method in METHODS
        for level in LEVELS
    ]
    return Measured(kept[JUDGED], kept[CONTROL], [*({"part": "path", **row} for row in rows), *shown], beside)


@dataclass(frozen=True)
class Case:
    """One source and target: what a method may learn from, and what it is judged by.

    source:     training instances of the source, `relabelled` the same with the target's answers
    old:        training instances of all other tasks
    judged:     validation instances of the source where the two answers differ, with the target's
    kept:       validation instances of all other tasks
    """

    source: Instances
    relabelled: Instances
    old: Instances
    judged: Instances
    kept: Instances
    target: int


def case_of(rooms: Rooms, pair: tuple[int, int], n_source: int | None = None) -> Case:
    """Divide a run's instances for one pair; n_source: so many of the source's, all by default."""
    train, val, (source, target) = rooms.trainer.train, rooms.trainer.val, pair
    own, held_out = only(train, source), only(val, source)
    if n_source is not None:
        order = torch.randperm(len(own), generator=torch.Generator().manual_seed(rooms.config.seed))
        own = own.select(order[:n_source].to(own.task.device))
    relabelled = relabel(rooms, own, torch.full_like(own.task, target))
    judged = where_answers_differ(rooms, relabel(rooms, held_out, torch.full_like(held_out.task, target)))
    return Case(own, relabelled, without(train, source), judged, without(val, source), target)


def aligned_rows(
    rooms: Rooms, method: str, pair: tuple[int, int], n_source: int | None = None, setting: Setting | None = None
) -> list[Row]:
    """Change a copy of the model by one method; follow success and what is kept of all other tasks on the way.

    The way is along the steps, or along the dial of a method without; `end` marks the row where the method ends. With
    few instances the last level ends it
    """
    assert isinstance(rooms.trainer.model, GPT2)
    case, setting = case_of(rooms, pair, n_source), setting or SETTINGS[method]
    model = copy.deepcopy(rooms.trainer.model)
    evaluator = Evaluator(model, model, CHUNK, fixed_shape=False)
    before = evaluator.accuracy(case.kept)
    rows: list[Row] = []

    def look(at: float, seconds: float, *, end: bool) -> None:
        success = evaluator.accuracy(case.judged)
        # with few instances nobody asks for it before
        known = n_source is None or success >= LEVELS[-1]
        kept = evaluator.accuracy(case.kept) if known else None
        name = {"method": method, "source": pair[0], "target": pair[1], "at": at, "end": end}
        rows.append(
            {**name, "success": success, "kept": kept, "forgotten": difference(before, kept), "seconds": seconds}
        )

    if method in DIALS:
        for at, seconds in _dialled(rooms, model, case, method, setting):
            look(at, seconds, end=at == setting.dial)
        return rows
    loss, spent, started = _loss_of(rooms, model, case, method, setting), 0.0, time.perf_counter()

    def after(step: int) -> bool:
        nonlocal spent, started
        spent += time.perf_counter() - started
        reached = bool(rows) and rows[-1]["success"] >= LEVELS[-1]
        if step == setting.steps or step % (LOOK_LATER if reached else LOOK_EVERY) == 0:
            look(step, spent, end=step == setting.steps)
        started = time.perf_counter()
        return n_source is not None and rows[-1]["success"] >= LEVELS[-1]

    descend(model, loss, rooms.config, steps=setting.steps, learning_rate=setting.rate, look=after)
    return rows


def _dialled(rooms: Rooms, model: GPT2, case: Case, method: str, setting: Setting) -> Iterator[tuple[float, float]]:
    """Have the model edited, or gated, at every place of the dial in turn; give the place and the seconds it took."""
    started = time.perf_counter()
    # fused blocks call no maps whose keys could be taken
    model.fuse_blocks(False)
    depth = round(setting.depth * len(model.blocks))
    # no hook sees the last block
    layer = f"blocks.{max(1, min(depth, len(model.blocks) - 1)) - 1}"
    linear, parts = f"{layer}.mlp_c_proj", (case.source, case.old)

    def read(what: Callable[..., Tensor], name: str) -> Float[Tensor, "n _"]:
        inputs = [(own.inputs(torch.arange(len(own))), own.output_position) for own in parts]
        return torch.cat([what(model, own, name, position=position) for own, position in inputs])

    task, given = (torch.cat([getattr(own, name) for own in parts]) for name in ("task", "input"))
    X, K = read(align.states, layer), read(align.keys, linear)
    alignment = align.fit(X, task, source=int(case.source.task[0]), target=case.target, context=given)
    fitted = time.perf_counter() - started
    for at in DIALS[method]:
        started = time.perf_counter()
        if method == "closed form":
            applied = alignment.edit(model, linear, keys=K, hold=at, ridge=setting.weight)
        else:
            applied = alignment.gate(model, layer, position="output_position", strength=at)
        seconds = fitted + time.perf_counter() - started
        with applied:
            yield at, seconds


def _loss_of(rooms: Rooms, model: GPT2, case: Case, method: str, setting: Setting) -> Callable[[], Tensor]:
    """Give what a method descends on; replay and distillation see other tasks' instances too."""
    seed, goal = rooms.config.seed, torch.full_like(case.source.task, case.target)
    drawn, replayed = (BatchSampler(len(own), BATCH, seed + i) for i, own in enumerate((case.relabelled, case.old)))

    def asked() -> Tensor:
        return answer(model, case.relabelled, drawn.draw())

    if method == "pull":
        return pulling(rooms, model, case.source, goal, drawn)
    if method == "lower layers alone":
        # the embedding is the output head, too
        lower = {id(weight) for block in model.blocks[: len(model.blocks) // 2] for weight in block.parameters()}
        for weight in model.parameters():
            weight.requires_grad_(id(weight) in lower)
        return asked
    if method == "L2 to the start":
        start = [weight.detach().clone() for weight in model.parameters()]
        return lambda: asked() + setting.weight * _distance(model, start)
    if method == "distillation":
        teacher = copy.deepcopy(model).eval()
        return lambda: asked() + setting.weight * _divergence(model, teacher, case.old, replayed.draw())
    if method == "replay":
        return lambda: asked() + setting.weight * answer(model, case.old, replayed.draw())
    return asked


def _distance(model: GPT2, start: Sequence[Tensor]) -> Tensor:
    return torch.stack([(w - s).square().sum() for w, s in zip(model.parameters(), start, strict=True)]).sum()


def _divergence(model: GPT2, teacher: GPT2, old: Instances, batch: Tensor) -> Tensor:
    """Give how far the answers have come from the teacher's, on other tasks' instances; Li & Hoiem 2016, at T = 1."""
    with torch.no_grad():
        wanted = F.log_softmax(teacher(*old.inputs(batch)).logits, -1)
    return F.kl_div(F.log_softmax(model(*old.inputs(batch)).logits, -1), wanted, reduction="batchmean", log_target=True)


def kept_at_success(rows: Sequence[Row], method: str, levels: Sequence[float] = LEVELS) -> float | None:
    """Average the accuracy kept where success first reaches each level, 0 where it never does, over pairs."""
    own = pick(rows, method=method)
    pairs = dict.fromkeys((row["source"], row["target"]) for row in own)
    paths = [pick(own, source=source, target=target) for source, target in pairs]
    return mean(
        next((row["kept"] for row in path if row["success"] >= level), 0.0) for path in paths for level in levels
    )


def data_needed(rooms: Rooms, method: str, pair: tuple[int, int], full: Sequence[Row]) -> dict[str, float | None]:
    """Count the fewest source instances with which a method reaches the last level, and does so with as much kept.

    full: the method's path with all of them, which counts last; None where that fails too
    """
    needed: dict[str, float | None] = {"success": None, "success with others kept": None}
    for n in (*FEW, len(only(rooms.trainer.train, pair[0]))):
        path = aligned_rows(rooms, method, pair, n) if n in FEW else full
        first = next((row for row in path if row["success"] >= LEVELS[-1]), None)
        if first is not None and needed["success"] is None:
            needed["success"] = float(n)
        if first is not None and first["kept"] >= LEVELS[-1]:
            needed["success with others kept"] = float(n)
            break
    return needed


STUDY = Study(
    name="alignment",
    question="Can a source task's instructions be made to act as a target task through the clusters, forgetting less?",
    claim="One weight, edited in closed form so that a source task's states go to a target's centroids, changes its "
    "answers with less forgetting than fine-tuning on relabelled data.",
    statistic="validation accuracy kept on all other tasks when the source's success first reaches 0.5 to 0.9, mean "
    "over these levels and four pairs of tasks, 0 where it never does, by the edit, as what is held weighs less",
    control="the same along the steps of fine-tuning on the source's instructions with the target's answers",
    margin=0.0,
    arms=_arms,
    measure=_measure,
    figure=Lines("level", "kept", "method", only=(("part", "levels"),)),
    note="settings were chosen on seeds 500 and 501, but methods after trials at seeds 0 to 4; an earlier design, "
    "which pulled states by steps, was undecided. The edit, the gate, distillation and replay see other tasks' "
    "instances, fine-tuning does not; replay stands beside the verdict",
)
