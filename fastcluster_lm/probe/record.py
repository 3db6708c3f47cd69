"""The run folder of a model that was trained elsewhere: begun, written probe after probe, ended; it scores nothing."""

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from fastcluster_lm.config import ScoresConfig
from fastcluster_lm.device import describe_environment
from fastcluster_lm.errors import NewerFormatError, RunFolderError, UsageError
from fastcluster_lm.probe.cadence import Cadence
from fastcluster_lm.probe.plan import narrowest_group
from fastcluster_lm.probe.scorer import Scorer
from fastcluster_lm.scores.contingency import host_array
from fastcluster_lm.scores.points import Points
from fastcluster_lm.store import RunFolder

# names of one kind of labels that run.toml holds at most
MOST_NAMES = 1000
# what a run may go on with though it was begun otherwise; no score is another's for it, but for a device's last digits
MAY_DIFFER = (
    "attached.sharded",
    "resolved.threads",
    "resolved.device",
    "resolved.probe_worker",
    "resolved.probe_worker_reason",
)

# whether the trainer that has a probe built goes on from a checkpoint of its own
_GOES_ON: ContextVar[bool] = ContextVar("goes_on", default=False)


@dataclass(frozen=True)
class Subject:
    """A model that others train or have trained, and what is asked of its states.

    n_layers: layers above the one that stands for the embedding
    points:   by split, those that are scored
    names:    by kind of labels their names, in the order of their numbers
    scores:   as asked for, where the scorer's own may have been lowered to what the points allow
    of:       what else is known of the model
    """

    model: nn.Module
    n_layers: int
    width: int
    points: Mapping[str, Points]
    names: Mapping[str, Sequence[str]]
    scores: ScoresConfig
    of: Mapping[str, Any] = field(default_factory=dict)

    def described(self, name: str, scorer: Scorer, probe: Mapping[str, Any], space: str) -> dict[str, Any]:
        """Say for run.toml what the run is; what only the trainer of the model knows is left out.

        probe: when and which points; space: which one the report leads with
        """
        group = narrowest_group(list(self.points.values())[-1], scorer.plan) if space == "hidden" else "all"
        return {
            "name": name,
            "seed": scorer.seed,
            "attached": {
                "model": type(self.model).__name__,
                "n_parameters": sum(weight.numel() for weight in self.model.parameters()),
                "instances": {split: len(own) for split, own in self.points.items()},
                "labels_sha256": _digest(self.points),
                "names": {kind: list(own) for kind, own in self.names.items() if len(own) <= MOST_NAMES},
                **self.of,
            },
            "model": {"n_layers": self.n_layers, "d_model": self.width},
            "probe": dict(probe),
            "scores": asdict(self.scores),
            "report": {"space": space, "group": group, "layer": self.n_layers},
            "resolved": {
                "engine": scorer.engine.name,
                "perplexity": scorer.config.perplexity,
                "threads": torch.get_num_threads(),
                "device": str(scorer.device),
            },
        }


@dataclass(frozen=True)
class Before:
    """What stands in a run folder before the step at which training goes on.

    last:     the step of the last probe; -1 without one
    state:    what the next probe depends on
    row:      what was known of the step itself, where it had been probed before
    notes:    what was moved aside, and what could not be gone on from
    """

    last: int
    state: dict[str, np.ndarray]
    row: Mapping[str, Any]
    notes: list[str]


class Record:
    """A run folder that this process writes until it is closed, and that is then finished or stopped.

    Errors: RunExistsError if the path is there but not to be gone on with; UsageError if it is another subject's;
            HeldError if another process writes it; RunFolderError if it is damaged or the disk refuses
    """

    def __init__(self, path: str | Path, described: Mapping[str, Any], *, resume: bool = False) -> None:
        # probes of it that have scores, how many of them are full ones, and how long all took
        self.probes, self.full_probes, self.seconds = 0, 0, 0.0
        self.resumes = resume and os.path.lexists(path)
        if self.resumes:
            self.folder = RunFolder.open(path)
            _check_same(self.folder, described)
        else:
            self.folder = RunFolder.create(path, described, describe_environment())
        self._open = ExitStack()
        self._open.enter_context(self.folder.lock())
        if self.resumes:
            self.folder.clean()

    def go_back(self, step: int, cadence: Cadence) -> Before:
        """Move all that is of this step or a later one aside, and give what a loop that goes on there needs.

        So is a probe after the last step of a loop that ended, if it was not due or is a full one where a step probe
        was, since one that goes on has none
        """
        # of a step that was probed twice, the first is the loop's own and the second its end
        rows: dict[int, dict[str, Any]] = {}
        twice = set()
        for row in self.folder.steps():
            if rows.setdefault(row["step"], row) is not row:
                twice.add(row["step"])
        last, state, notes = -1, {}, []
        for at in sorted((at for at in rows if at < step and cadence.is_due(at)), reverse=True):
            try:
                groups, known = self.folder.read_checkpoint(at)
            except NewerFormatError:
                raise
            except RunFolderError as error:
                notes.append(f"the probe of step {at} cannot be gone on from: {error}")
                continue
            if known.get("full", True) is (cadence.is_full(at) or at == min(rows)):
                last, state = at, groups["probe"]
                self.probes = int(str(known["probes"]))
                self.full_probes = int(str(known.get("full_probes", self.probes)))
                break
        if last in twice:
            own = [row for row in self.folder.scores() if row["step"] == last and row["tier"] == "step"]
            moved = self.folder.set_aside_after(max((at for at in rows if at < last), default=-1))
            self.folder.append_scores(own)
            self.folder.write_checkpoint(last, groups, known)
            self.folder.append_steps([rows[last]])
        else:
            moved = self.folder.set_aside_after(last)
        self.seconds = sum(row["probe_ms"] or 0.0 for at, row in rows.items() if at <= last) / 1e3
        return Before(last, state, rows.get(step, {}), notes + ([] if moved is None else [str(moved)]))

    def write_scores(
        self,
        step: int,
        rows: Sequence[Mapping[str, Any]],
        maps: Mapping[str, np.ndarray],
        notes: Mapping[str, str],
        *,
        full: bool = True,
    ) -> None:
        """Write what a probe found, and notes beside its maps; without a map there is no file of one.

        Errors: RunFolderError if the disk refuses
        """
        if maps:
            self.folder.write_map(step, maps, notes)
        self.folder.append_scores(rows)
        self.probes += 1
        self.full_probes += full

    def write_state(self, step: int, state: Mapping[str, torch.Tensor], *, full: bool) -> None:
        """Write what the next probe depends on, sealed as a checkpoint is; before the step's row, which ends a probe.

        full: whether the step's own probe was a full one
        Errors: RunFolderError if the disk refuses
        """
        arrays = {name: tensor.cpu().numpy() for name, tensor in state.items()}
        known = {"probes": self.probes, "full_probes": self.full_probes, "full": full}
        self.folder.write_checkpoint(step, {"probe": arrays}, known)

    def write_step(self, step: int, seconds: float, *, wait: float | None = None, **columns: Any) -> None:
        """Write how long a probe took, and what else is known of its step.

        wait: seconds of it that training stood still for; None: all
        Errors: RunFolderError if the disk refuses
        """
        self.seconds += seconds
        wait_ms = (seconds if wait is None else wait) * 1e3
        self.folder.append_steps([{"step": step, "probe_ms": seconds * 1e3, "probe_wait_ms": wait_ms} | columns])

    def finish(self, last_step: int) -> list[str]:
        """Mark the run as finished, and close it; sentences say what of what was set aside cannot be read and stays."""
        summary = {"steps": last_step, "probes": self.probes, "probe_seconds": self.seconds}
        said = self.folder.let_go_of_repeated(summary)
        self.folder.mark_finished(summary)
        self.close()
        return said

    def close(self) -> None:
        """Release the folder; unless it was finished, as that of a run that was stopped."""
        self._open.close()


@contextmanager
def going_on(yes: bool) -> Iterator[None]:
    """Let probes that are built within go on with their runs, where a trainer says that it goes on itself."""
    token = _GOES_ON.set(yes)
    try:
        yield
    finally:
        _GOES_ON.reset(token)


def trainer_goes_on() -> bool:
    """Say whether a trainer does."""
    return _GOES_ON.get()


def _digest(points: Mapping[str, Points]) -> str:
    """Tell apart instances that are labelled otherwise, or others that the map shows."""
    digest = hashlib.sha256()
    for split, own in points.items():
        for name, values in {**own.labels, "on map": own.on_map, "instructions": own.instructions}.items():
            if values is not None:
                codes = host_array(values)
                digest.update(f"{split} {name} {len(codes)} ".encode() + codes.astype("<i8").tobytes())
    return digest.hexdigest()


def _check_same(folder: RunFolder, described: Mapping[str, Any]) -> None:
    """Refuse a run of another model, of other points, or scored in another way: its curves would not go on.

    Errors: UsageError naming what differs
    """
    stored = dict(_flat(folder.config()))
    for key, value in _flat(described):
        # what an older version did not write, nobody can compare
        if key not in MAY_DIFFER and key in stored and stored[key] != value:
            raise UsageError(
                f"{folder.path} was begun with {key} = {stored[key]!r}, and is to go on with {value!r}; give the same, "
                "or another folder"
            )


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
