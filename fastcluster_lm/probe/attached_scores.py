"""Score the states of instances that a caller labelled, probe after probe; it runs no model and writes nothing."""

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from fastcluster_lm.config import ScoresConfig
from fastcluster_lm.errors import ShapeError, UsageError, nearest_name
from fastcluster_lm.kernels.deferred import deferred
from fastcluster_lm.probe.pending import ProbeResult, Taken, launch_full
from fastcluster_lm.probe.samples import LabelledSet, Sample
from fastcluster_lm.probe.warm_map import WarmMap
from fastcluster_lm.probe.whole_layers import Whole
from fastcluster_lm.scores.clusters import PLANS, SPACES, Divisions, PendingSpace, Scoring, Split, start_space
from fastcluster_lm.scores.contingency import factorize, host_array
from fastcluster_lm.scores.engines import choose_engine
from fastcluster_lm.scores.parts import divide

# what can be known of an instance; only its task must be
KINDS = ("task", "distribution", "input", "output", "instruction")


def labelled_sets(
    given: Mapping[str, Any], *, map_points: int, n_neighbors: int, seed: int
) -> tuple[dict[str, LabelledSet], dict[str, list[str]]]:
    """Number the labels of all splits together, and choose which instances the map shows: equally many of each kind.

    given: by split, task labels (n,) or a mapping with `task` and any of the other KINDS, (n,) each
    Gives the sets by split, and by kind the labels' names in the order of their numbers
    Errors: UsageError for an unknown kind, one task alone, too few instances of a task; ShapeError for unlike lengths
    """
    named = {name: _named(labels, name) for name, labels in given.items()}
    kinds = list(next(iter(named.values())))
    for name, labels in named.items():
        if list(labels) != kinds:
            raise UsageError(
                f"labels: expected the same kinds in each split, got {list(labels)} in {name}, not {kinds}"
            )
    sizes = [len(labels["task"]) for labels in named.values()]
    codes, names = {}, {}
    for kind in kinds:
        whole = np.concatenate([labels[kind] for labels in named.values()])
        codes[kind] = np.split(factorize(whole)[0], np.cumsum(sizes)[:-1])
        names[kind] = [str(name) for name in np.unique(whole)]
    if len(np.unique(np.concatenate(codes["task"]))) < 2:
        raise UsageError("labels: expected two tasks or more, got one; clusters of one label cannot be told apart")
    sets: dict[str, LabelledSet] = {}
    for at, (name, n) in enumerate(zip(named, sizes, strict=True)):
        own = {kind: codes[kind][at] for kind in kinds}
        instructions = own.pop("instruction", np.arange(n))
        if "input" in own:
            own["task_input"] = own["task"] * (1 + max(int(part.max()) for part in codes["input"])) + own["input"]
        fewest = _fewest_partners(own["task"], instructions)
        if fewest < n_neighbors:
            raise UsageError(
                f"labels: expected {n_neighbors} other instances of each task in {name}, as scores.n_neighbors asks "
                f"for, got {fewest} for one; give more, or lower it"
            )
        shown = _balanced(own, min(map_points, n), seed)
        # numbers of validation instances begin beyond all that training could have
        sets[name] = LabelledSet(own, instructions, torch.from_numpy(shown), torch.arange(n) + at * 2**40)
    return sets, names


class AttachedScores:
    """Score every layer of each probe, in the hidden space and on a map that goes on from the last."""

    def __init__(
        self, sets: Mapping[str, LabelledSet], config: ScoresConfig, seed: int, *, device: torch.device
    ) -> None:
        self.sets, self.config, self.seed = sets, config, seed
        self._scoring = Scoring(n_neighbors=config.n_neighbors, n_init=config.n_init, n_nulls=config.n_nulls, seed=seed)
        self._divisions = Divisions()
        self.memory_mib = config.memory_mib
        self.device = device
        self._engine = choose_engine(config.engine, self.device, self.memory_mib)
        self._map = WarmMap(config, self._engine, seed)

    def plan(self, space: str) -> tuple[tuple[str, str], ...]:
        """Give the rows of a space that the labels at hand allow."""
        known = set(next(iter(self.sets.values())).labels)
        return tuple(
            (group, labels)
            for group, labels in PLANS[space]
            if labels in known and (group == "all" or set(group.split("_")) <= known)
        )

    @property
    def group(self) -> str:
        """The narrowest group with enough instances: where the fewest other things can stand in for the task."""
        own = list(self.sets.values())[-1]
        alone = Split("val", torch.empty(0, len(own.ids), 0), own.labels)
        groups = [group for group, labels in self.plan("hidden") if labels == "task"]
        return [group for group in groups if any(divide(alone, alone, [(group, "task")], Scoring(n_nulls=0)))][-1]

    def begin_anew(self) -> None:
        """Forget the last map, so that the next probe may be of other layers."""
        self._map = WarmMap(self.config, self._engine, self.seed)

    def score(
        self,
        states: Mapping[str, Float[Tensor, "layers n d"]],
        step: int,
        *,
        key_frame: bool,
        spaces: Collection[str] = SPACES,
    ) -> ProbeResult:
        """Score one probe's states of each split; the first split is the bank. spaces: those that have rows.

        Shapes: states (layers, n, d) float32 by split; layers that hold NaN or infinity are named, and not scored
        """
        device = next(iter(states.values())).device
        if device != self.device:
            # a model that was moved; its map starts anew
            self.device = device
            self._engine = choose_engine(self.config.engine, device, self.memory_mib)
            self.begin_anew()
        samples = {
            name: Sample(name, states[name], own.labels, own.instructions, own.on_map, own.ids)
            for name, own in self.sets.items()
        }
        with deferred(device) as checks:
            taken = Taken(step, True, samples, "fresh", 0.0)
            pending = launch_full(
                taken, self._map, self._start_space, key_frame=key_frame, checks=checks, wanted=spaces
            )
        columns = pending.columns()
        if "map" in spaces:
            self._map.settle(columns, warm=pending.warm)
        return ProbeResult(pending.rows(columns), pending.maps(), pending.warm, 0.0, pending.skipped)

    def halve_memory(self) -> bool:
        """Make the engine's blocks half as large; False once they are at their smallest."""
        if self.memory_mib == 1:
            return False
        self.memory_mib //= 2
        # the map goes on: what it keeps is the map's own, not the engine's
        self._engine = self._map.engine = choose_engine(self._engine.name, self.device, self.memory_mib)
        return True

    @property
    def engine(self) -> str:
        """The name of the engine at work."""
        return self._engine.name

    def _start_space(self, space: str, splits: dict[str, Split], whole: Whole | None) -> PendingSpace:
        return start_space(
            splits,
            next(iter(splits.values())),
            space=space,
            plan=self.plan(space),
            scoring=self._scoring,
            engine=self._engine,
            divisions=self._divisions,
        )


def _named(given: Any, split: str) -> dict[str, np.ndarray]:
    labels = given if isinstance(given, Mapping) else {"task": given}
    if unknown := [kind for kind in labels if kind not in KINDS]:
        raise UsageError(f"labels: expected {', '.join(KINDS)}, got {unknown[0]!r}{nearest_name(unknown[0], KINDS)}")
    if "task" not in labels:
        raise UsageError(f"labels: expected task among them, got {', '.join(labels) or 'none'}")
    arrays = {kind: host_array(labels[kind]) for kind in KINDS if kind in labels}
    n = len(arrays["task"])
    for kind, values in arrays.items():
        if values.shape != (n,):
            raise ShapeError(f"labels: {kind} of {split} has shape {values.shape}; expected ({n},), one an instance")
    return arrays


def _fewest_partners(task: np.ndarray, instructions: np.ndarray) -> int:
    """Count, for the worst-placed instance, those of its task and another instruction."""
    both = np.unique(np.stack([task, instructions]), axis=1, return_inverse=True)[1].ravel()
    return int((np.bincount(task)[task] - np.bincount(both)[both]).min())


def _balanced(labels: Mapping[str, np.ndarray], m: int, seed: int) -> Int[np.ndarray, " m"]:
    """Draw m instances, in turn from every task, within a task in turn from every distribution, and so on."""
    n = len(labels["task"])
    order = np.random.default_rng(seed).permutation(n)
    kinds = list(labels.values())
    for depth in range(len(kinds), 0, -1):
        cell = np.unique(np.stack(kinds[:depth]), axis=1, return_inverse=True)[1].ravel()[order]
        by_cell = np.argsort(cell, kind="stable")
        turn = np.empty(n, dtype=np.int64)
        turn[by_cell] = np.arange(n) - np.searchsorted(cell[by_cell], cell[by_cell])
        order = order[np.argsort(turn, kind="stable")]
    return np.sort(order[:m])
