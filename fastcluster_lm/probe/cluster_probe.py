"""Score the layers of any model inside any training loop; it trains nothing, and training does not notice it."""

import math
import operator
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, distributed, nn

from fastcluster_lm.config import ScoresConfig
from fastcluster_lm.device import generators_kept
from fastcluster_lm.errors import ShapeError, UsageError
from fastcluster_lm.kernels import native
from fastcluster_lm.probe.attached_probes import AttachedProbes, Row
from fastcluster_lm.probe.cadence import Cadence
from fastcluster_lm.probe.cost import Cost
from fastcluster_lm.probe.plan import ProbePlan, narrowest_group
from fastcluster_lm.probe.points import labelled_points
from fastcluster_lm.probe.positions import Scorers
from fastcluster_lm.probe.record import Record, Subject, trainer_goes_on
from fastcluster_lm.probe.runners.attached import beside_policy
from fastcluster_lm.probe.sources.inputs import as_inputs, count_instances
from fastcluster_lm.probe.sources.modules import LayerReader, Layers
from fastcluster_lm.probe.sources.tokens import ByLayer, describe_position, named_positions
from fastcluster_lm.probe.undisturbed import plain_torch
from fastcluster_lm.scores.engines import choose_engine
from fastcluster_lm.scores.engines.params import TsneParams
from fastcluster_lm.scores.points import Points
from fastcluster_lm.store import RunFolder, check_free, default_run_path

# instances of the trial at construction
TRIAL = 2


class ClusterProbe:
    """Score, every few steps, how instances of the caller's gather by task in the layers of a model in training.

    model:    any module; compiled, replicated (DDP) and sharded (FSDP) ones too
    inputs:   what its forward takes, one row an instance: a tensor, an array, a list of rows, or some of them in a dict
              (keywords) or a tuple
    labels:   (n,) tasks, integers or text; or a dict with `task` and any of `distribution`, `input`, `output`,
              `instruction`, (n,) each: nulls, groups and neighbours of other distributions need them
    val:      another (inputs, labels), scored against the first as validation against training. Without it the one set
              is called `val` in the rows, and its neighbours are its own
    layers:   names of modules as the plain model has them, whatever compiles, shards, replicates or adapts it, `*` for
              one part of a name; scored in the model's order. Or, for states that no module gives, a function of
              (model, batch) that runs the model and gives them by name, {"mlp": (B, T, D) or (B, D)}
    every:    steps between probes
    full_every: steps between full ones, rounded up to a multiple of `every`; those between are step probes, which score
              the task alone, of the first set's instances on the map, going on from the last clusters and the last map.
              By default all are full. The first one is, and so is one at the end
    position: whose token's state is scored: an index, the name of an input whose last marked token it is
              ("attention_mask"), a tensor of indices (n,) or marks (n, T), or a function of (output, rows) -> (B, D)
    positions: several of these in place of `position`, by name, {"question": 0, "answer": "attention_mask"}: their
              states are of one forward, each is scored and has its maps, and the rows say which it is. What a name
              stands for may differ by layer, {"encoder.block.*": 0, "decoder.block.*": -1}
    out:      the run folder; dated under runs/ by default
    resume:   go on with the run in `out`, if it is there, at the step that is given first; what it holds of that and of
              later steps is moved aside within the folder, and the next map starts from the last one before
    scores:   how states are scored; map_points: instances a split on the map
    plan:     which rows there are, and whether a map; by default all that the labels allow, but those of task_input
              only where each of its clusters has five points or more
    batch_size: instances of one forward
    autocast: dtype of the probe's forward; None: as the caller autocasts
    worker:   where states are scored: "on" in a process beside training, on the CPU, from copies of the states, which
              holds training up for the forward and the copy alone; rows come some steps later, the same to the last
              byte if the model is on the CPU too; "off" at once, while training waits; "auto" beside it where scores
              take long and a core is free: from 1 MiB of states on, of a model on the CPU whose torch leaves a core
    log:      called with (metrics, step) after each probe, as `wandb.log` is: task ARI and neighbour share of each
              layer under names such as fclm/blocks.3/ari

    Construction tries two instances and raises what is wrong. Later a probe that fails, for want of memory, is skipped
    with a warning, and so is a layer whose states are not finite, while the others are scored; `skipped` in the row of
    steps.jsonl says which and why. Only where a sharded model has no memory for a forward does the error go on, since
    its ranks cannot be parted. Where ranks share training,
    rank 0 scores and writes; every rank calls all methods, since a sharded model runs on all of them.
    """

    def __init__(
        self,
        model: nn.Module,
        inputs: Any,
        labels: Any,
        *,
        layers: Layers,
        every: int = 50,
        full_every: int | None = None,
        val: tuple[Any, Any] | None = None,
        position: ByLayer | np.ndarray | list[Any] = -1,
        positions: Mapping[str, Any] | None = None,
        out: str | Path | None = None,
        scores: ScoresConfig | None = None,
        map_points: int = 480,
        batch_size: int = 256,
        autocast: torch.dtype | None = None,
        seed: int = 0,
        resume: bool = False,
        log: Callable[[dict[str, float], int], object] | None = None,
        plan: ProbePlan | None = None,
        worker: str = "auto",
    ) -> None:
        # 1. what is asked for, before the model runs or anything is written
        if resume and out is None:
            raise UsageError("resume: expected out= the run folder to go on with, got none")
        full_every = every if full_every is None else full_every
        counts = {"every": every, "full_every": full_every, "batch_size": batch_size, "map_points": map_points}
        for name, value in counts.items():
            if value < 1:
                raise UsageError(f"{name}: expected 1 or more, got {value}")
        tokens = named_positions(position, positions, several_splits=val is not None)
        config, self.every, self._log = scores or ScoresConfig(), every, log
        self._cadence = Cadence(every, None, config.key_frame_every, full_every)
        given = {"val": (inputs, labels)} if val is None else {"train": (inputs, labels), "val": val}
        own_inputs = {name: as_inputs(own) for name, (own, _) in given.items()}
        with plain_torch():
            self._points, names = labelled_points(
                {name: own for name, (_, own) in given.items()},
                map_points=map_points,
                n_neighbors=config.n_neighbors,
                seed=seed,
            )
        for name, own in own_inputs.items():
            if count_instances(own) != len(self._points[name]):
                raise ShapeError(
                    f"{name}: got {count_instances(own)} rows of inputs and {len(self._points[name])} labels; "
                    "expected one label a row"
                )
        plan = (plan or ProbePlan()).fitting(self._points.values())
        fitted = _fitting(config, self._points, alone=self._has_tiers)
        # 2. the model, which runs some instances
        self._reader = LayerReader(
            model, layers, positions=[*tokens.values()], batch_size=batch_size, autocast=autocast
        )
        self.is_writer = not (distributed.is_available() and distributed.is_initialized() and distributed.get_rank())
        width = 0
        with generators_kept():
            if self._takes_part:
                some = torch.arange(TRIAL, device="cpu")
                width = max(self._reader.read(own, some).shape[2] for own in own_inputs.values())
        # 3. what scores, and where
        with plain_torch():
            n = sum(len(own) for own in self._points.values())
            beside, reason = beside_policy(worker, self._reader.device, 4 * len(tokens) * len(self.layers) * n * width)
            device = torch.device("cpu") if beside else self._reader.device
            engine = choose_engine(fitted.engine, device, fitted.memory_mib)
            scorers = Scorers([*tokens], fitted, engine, device, seed, plan)
            self._group = narrowest_group(list(self._points.values())[-1], plan)
        self.positions = scorers.names
        # 4. the run folder
        self._record: Record | None = None
        if self.is_writer:
            # before the first probe, whose time is written down
            native.prepare()
            told = {name: describe_position(own) for name, own in tokens.items()}
            of = {
                "layers": self.layers,
                "position": told if len(told) > 1 else next(iter(told.values())),
                "sharded": self._reader.sharded,
            }
            subject = Subject(self._reader.model, len(self.layers) - 1, width, self._points, names, config, of)
            when = {
                "every": every,
                "full_every": self._cadence.period,
                "map_points": map_points,
                "positions": [*tokens],
                "plan": plan.described(),
            }
            described = subject.described("attached", scorers.first, when, "hidden")
            described["resolved"] |= {"probe_worker": beside, "probe_worker_reason": reason}
            path, resume = out or default_run_path("attached"), resume or trainer_goes_on()
            if not resume:
                check_free(Path(path), "give another out=, remove it, or give resume=True to go on with it")
            self._record = Record(path, described, resume=resume)
        self._cost = Cost(self._cadence, self._reader.device)
        self._probes = AttachedProbes(
            self._reader, own_inputs, self._points, scorers, self._record, self._cost, beside=beside
        )
        # of the newest probe: rows, and states until the next step
        self._rows: list[Row] = []
        self._states: dict[str, Tensor] = {}
        # the step of the last probe, whether that was a full one, and the last step that was given
        self._last, self._full, self._given, self._closed = -1, False, -1, False
        # what is known of the step that was given, if it had been probed before
        self._known: Mapping[str, Any] = {}

    @property
    def folder(self) -> RunFolder | None:
        """The run folder; None on ranks that write none."""
        return None if self._record is None else self._record.folder

    @property
    def layers(self) -> list[str]:
        """The names of the scored layers; their places are the `layer` of a row."""
        return self._reader.names

    @property
    def scores(self) -> list[Row]:
        """The rows of the newest probe."""
        return self._rows

    @property
    def history(self) -> list[Row]:
        """The rows of all probes, read from the run folder, those before a resume too; none on ranks without one."""
        return [] if self.folder is None else self.folder.scores()

    def states(self) -> dict[str, Float[Tensor, "layers n d"]]:
        """Give the states that were just scored, by split, on the host; they are kept until the next step is given.

        Of several positions those of each are named split/position
        Errors: UsageError where there are none
        """
        if not self._states:
            raise UsageError("states: expected a probe in the step that was given last, there was none")
        # what a worker scores lies where the next ones will
        states = {split: X.clone() for split, X in self._states.items()}
        names = self.positions
        if len(names) == 1:
            return states
        apart = {split: X.chunk(len(names)) for split, X in states.items()}
        return {f"{split}/{name}": own[at] for split, own in apart.items() for at, name in enumerate(names)}

    def __repr__(self) -> str:
        sizes = " and ".join(f"{len(own)} {name}" for name, own in self._points.items())
        where = "no folder" if self.folder is None else repr(str(self.folder.path))
        last = "not probed yet" if self._last < 0 else f"probed at step {self._last}"
        what = f"{len(self.layers)} layers of {type(self._reader.model).__name__}, {sizes} instances"
        closed = "closed, " if self._closed else ""
        when = f"every {self.every} steps" + (f", in full every {self._cadence.period}," if self._has_tiers else "")
        return f"<ClusterProbe of {what}, {when} into {where}; {closed}{last}>"

    def is_due(self, step: int) -> bool:
        """Say whether `step` would probe at this step: `every` divides it, and it was not probed just now."""
        return self._cadence.is_due(step) and step != self._last

    def step(self, step: Any, *, loss: float | None = None, val_accuracy: float | None = None) -> list[Row]:
        """Probe the model if it is time: where `every` divides the number of optimiser steps taken.

        Call it between an optimiser step and the next forward; a number of any kind will do, a tensor's too. Gives the
        rows of this probe, none where it was not time or the probe was skipped; with a worker those of probes that are
        done since, so call it after every step. loss and val_accuracy are written beside them
        Errors: UsageError for what is no step, one before the last, or any after the end
        """
        step = self._counted(step)
        self._cost.count(step)
        started = time.perf_counter()
        if self.is_due(step):
            # the first one of a run is a full one
            self._probe(step, loss, val_accuracy, full=self._cadence.is_full(step) or self._last < 0)
        rows = self._collect(wait=False)
        self._cost.spend(time.perf_counter() - started)
        return rows

    def wait(self) -> list[Row]:
        """Wait for the probes that a worker has not done yet, and give their rows; before a loop saves itself, say.

        A loop that goes on from a checkpoint has then all rows of the steps before
        """
        return [] if self._closed else self._collect(wait=True)

    def close(self, step: Any = None) -> list[Row]:
        """End the run; with the last step's number that step is probed too, in full, unless it was; its rows are given.

        A run that was ended stays so, and one whose loop never said where it goes on is left as it was
        Errors: UsageError for a later step after the end
        """
        if self._closed and (step is None or step == self._given):
            return []
        if step is not None:
            step = self._counted(step)
            if step != self._last or not self._full:
                self._probe(step, None, None, full=True)
        rows = self._collect(wait=True)
        if self._record is not None and (self._given >= 0 or not self._record.resumes):
            for said in self._record.finish(max(self._last, 0)):
                warnings.warn(said, stacklevel=2)
        self.abandon()
        return rows

    def abandon(self) -> None:
        """Release the run folder as it is, that of a run that was stopped; what a worker has not done is lost."""
        if not self._closed:
            self._closed = True
            self._collect(wait=False)
        self._states = {}
        self._probes.close()

    def __enter__(self) -> "ClusterProbe":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
        else:
            self.abandon()

    def headline(self, rows: Sequence[Row] | None = None) -> dict[str, float]:
        """Give the newest task scores of each layer, of the narrowest group, under names such as fclm/blocks.3/ari.

        With several positions such as fclm/answer/blocks.3/ari; those of a step probe, whose points are others, such as
        fclm/step/blocks.3/ari
        rows: those that `step`, `wait` or `close` gave; by default of the newest probe
        """
        wanted = {"split": "val", "space": "hidden", "group": self._group, "labels": "task"}
        found: dict[str, float] = {}
        for row in self._rows if rows is None else rows:
            # all rows of a step probe are of the task, and of one set
            between = row["tier"] == "step" and row["space"] == "hidden"
            if between or all(row[key] == value for key, value in wanted.items()):
                front = [
                    "fclm",
                    *([row["position"]] if len(self.positions) > 1 else []),
                    *(["step"] if between else []),
                ]
                place = "/".join([*front, self.layers[row["layer"]]])
                scores = {f"{place}/{column}": row[column] for column in ("ari", "knn_share")}
                found |= {name: value for name, value in scores.items() if value is not None}
        return found

    def _counted(self, step: Any) -> int:
        """Take a step's number, and begin where the first one says."""
        try:
            number = operator.index(step)
        except TypeError:
            number = -1
        if number < 0 or isinstance(step, bool):
            raise UsageError(f"step: expected the number of optimiser steps taken, 0 or more, got {step!r:.60}")
        if self._closed:
            raise UsageError(
                f"step: got {number}, but this probe's run has ended; give a new ClusterProbe the same out= and "
                "resume=True to go on with it"
            )
        if number < self._given:
            raise UsageError(
                f"step: expected {self._given} or more, the last one given, got {number}; a loop that goes back to a "
                "checkpoint gives a new ClusterProbe the same out= and resume=True"
            )
        if self._given < 0 and self._record is not None and self._record.resumes:
            before = self._record.go_back(number, self._cadence)
            self._last, self._known = before.last, before.row
            self._probes.load({name: torch.from_numpy(array) for name, array in before.state.items()})
            for note in before.notes:
                warnings.warn(f"{self._record.folder.path}: {note}", stacklevel=3)
        elif number > self._given:
            self._known = {}
        if self._given < 0 and self._has_tiers and self._reader.sharded:
            # the other ranks, which see no folder, run the model over the same instances
            told = [self._last]
            distributed.broadcast_object_list(told)
            self._last = told[0]
        self._given, self._states = number, {}
        return number

    @property
    def _has_tiers(self) -> bool:
        return self._cadence.period > self.every

    @property
    def _takes_part(self) -> bool:
        return self.is_writer or self._reader.sharded

    def _probe(self, step: int, loss: float | None, val_accuracy: float | None, *, full: bool) -> None:
        """Ask for a probe of the model as it is."""
        if not self._takes_part:
            return
        self._last, self._full, self._rows = step, full, []
        # a trainer that has just gone on may know less of this step than it did before
        seen = {"loss": _finite(loss), "val_accuracy": _finite(val_accuracy)}
        self._known = {name: self._known.get(name) if value is None else value for name, value in seen.items()}
        self._states = self._probes.ask(step, self._known, full=full)

    def _collect(self, *, wait: bool) -> list[Row]:
        """Take the rows of the probes that are done, and tell the caller's log of each."""
        found: list[Row] = []
        for step, rows in self._probes.collect(wait=wait):
            self._rows = rows
            found += rows
            if self._log is not None and (metrics := self.headline(rows)):
                self._log(metrics, step)
        return found


def _fitting(config: ScoresConfig, points: Mapping[str, Points], *, alone: bool) -> ScoresConfig:
    """Lower the perplexity to what the map's points allow, once and aloud; refuse a map of too few.

    alone: whether those of the first split are scored alone, too
    """
    shown = [len(own.shown()) for own in points.values()]
    n_shown = sum(shown)
    if (least := shown[0] if alone else n_shown) <= config.n_neighbors:
        raise UsageError(
            f"map_points: expected more instances on the map than scores.n_neighbors={config.n_neighbors}, got {least}"
        )
    asked = TsneParams(perplexity=config.perplexity)
    if lowered := asked.lowered(n_shown, "instances"):
        warnings.warn(f"scores.{lowered}", stacklevel=3)
    return replace(config, perplexity=asked.effective_perplexity(n_shown))


def _finite(value: float | None) -> float | None:
    return float(value) if value is not None and math.isfinite(value) else None
