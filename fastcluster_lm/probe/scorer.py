"""Score one probe after the other: the only place that starts and finishes their scores, and keeps the map between."""

from collections.abc import Collection, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from fastcluster_lm.config import ScoresConfig
from fastcluster_lm.kernels.deferred import deferred
from fastcluster_lm.probe.pending import Captured, Found, PendingProbe, ProbeResult, numbers_of
from fastcluster_lm.probe.plan import EVERYTHING, ProbePlan
from fastcluster_lm.probe.warm_map import WarmMap
from fastcluster_lm.probe.whole_layers import Whole, whole_layers
from fastcluster_lm.scores.contingency import factorize
from fastcluster_lm.scores.engines import choose_engine
from fastcluster_lm.scores.engines.params import Engine, NeighborsParams
from fastcluster_lm.scores.geometry import class_distance_normalized_variance, intrinsic_dimension
from fastcluster_lm.scores.parts import Divisions, Scoring
from fastcluster_lm.scores.points import Labels, Points
from fastcluster_lm.scores.rows import ClusterSet, PendingSpace
from fastcluster_lm.scores.spaces import Space, start_space

# what a step probe scores
STEP_PLAN = (("all", "task"),)


class Scorer:
    """Score probes of one model in their order, each in the hidden space and on a map that goes on from the last.

    A probe goes through `launch`, which gives the device all there is to do and waits for nothing, and `finish`, which
    fetches what was found and makes rows and map of it; the next is launched after that. What a probe depends on is
    its points, `config`, `seed`, `plan` and `state()`
    """

    # task clusters of the bank that the next step probe's KMeans goes on from: (1, layers, k, d)
    _centroids: dict[ClusterSet, Tensor]
    # whether a layer has none of its own, since it never could be scored; they are then NaN
    _gaps: bool

    def __init__(
        self,
        config: ScoresConfig,
        engine: Engine,
        device: torch.device,
        seed: int,
        plan: ProbePlan = EVERYTHING,
        divisions: Divisions | None = None,
    ) -> None:
        self.config, self.engine, self.plan = config, engine, plan
        self.device, self.seed, self.memory_mib = device, seed, config.memory_mib
        self._scoring = Scoring(n_neighbors=config.n_neighbors, n_init=config.n_init, n_nulls=config.n_nulls, seed=seed)
        # of a step probe, the first and those that go on from its centroids
        self._step_scoring = [replace(self._scoring, n_init=n_init, n_nulls=0) for n_init in (1, 0)]
        self.divisions = divisions or Divisions()
        self.begin_anew()

    def score(self, captured: Captured, spaces: Collection[str] | None = None) -> ProbeResult:
        """Score one probe's points, waiting for it; spaces: the plan's by default."""
        return self.finish(self.launch(captured, spaces))

    def launch(self, captured: Captured, spaces: Collection[str] | None = None) -> PendingProbe:
        """Give the device all that a probe needs of it; on a GPU nothing here waits for it.

        The columns of one space do not depend on the other's, and no map is drawn that is not asked for. A layer whose
        states are not finite is not scored, and the others are as they would be without it
        """
        for own in captured.points.values():
            self._follow(own.X.device)
        with deferred(self.device) as checks:
            # layers that are not finite get the points of one that is: (layers, n, d) by split
            points, whole, finite = whole_layers(captured.points)
            if captured.full:
                spaces = spaces or self.plan.spaces
                started, found, shown = self._launch_full(points, whole, spaces, key_frame=captured.key_frame)
            else:
                started, found = self._launch_step(points, whole)
                shown = []
        return PendingProbe(captured, started, found._replace(finite=finite), shown, checks)

    def finish(self, pending: PendingProbe) -> ProbeResult:
        """Make rows and map of what the device found, waiting for it if need be.

        A layer whose states are not finite has rows without scores, and is named in `skipped`
        Errors: what the device had to be asked for
        """
        found = pending.fetch()
        whole = not found.broken()
        if self._gaps or not whole:
            self._gaps = any(bool(own.isnan().any()) for own in self._centroids.values())
        if found.place is not None:
            self._map.settle(found.columns, warm=found.warm, whole=whole)
        return pending.result(found)

    def state(self) -> dict[str, Tensor]:
        """Give all that the next probe depends on: the map and what measures it, centroids."""
        return {**self._map.state(), **{f"centroids/{name}": value for name, value in self._centroids.items()}}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a saved state."""
        self._map.load_state(state, self.device)
        self._centroids = {
            ClusterSet.named(name.removeprefix("centroids/")): value.to(self.device)
            for name, value in state.items()
            if name.startswith("centroids/")
        }
        self._gaps = any(bool(own.isnan().any()) for own in self._centroids.values())

    def begin_anew(self) -> None:
        """Forget all probes that were, so that the next may be of other layers."""
        self._map = WarmMap(self.config, self.engine, self.seed)
        self._centroids, self._gaps = {}, False

    def halve_memory(self) -> bool:
        """Make the engine's blocks half as large; False once they are at their smallest."""
        if self.memory_mib == 1:
            return False
        self.memory_mib //= 2
        # the map goes on: what it keeps is the map's own, not the engine's
        self.engine = self._map.engine = choose_engine(self.engine.name, self.device, self.memory_mib)
        return True

    def _follow(self, device: torch.device) -> None:
        """Go where the states are: the map of a model that was moved starts anew."""
        if device != self.device:
            self.device = device
            self.engine = choose_engine(self.config.engine, device, self.memory_mib)
            self.begin_anew()

    def _launch_full(
        self, points: Mapping[str, Points], whole: Whole | None, wanted: Collection[str], *, key_frame: bool
    ) -> tuple[list[PendingSpace], Found, list[Points]]:
        """Score the hidden states, draw the map, score that, and measure what both say of geometry.

        Gives the points that are on the map beside what is on its way
        """
        # 1. the states of all points
        placed = {"hidden": dict(points)}
        spaces = [self._start("hidden", points, whole)] if "hidden" in wanted else []
        # 2. the points on the map, those of all splits together: (layers, m, d) -> (layers, m, 2)
        shown = [own.shown() for own in points.values()]
        X = torch.cat([own.X for own in shown], 1)
        columns: dict[str, Tensor] = {}
        place, warm = None, False
        if "map" in wanted:
            place, columns, near, warm, _ = self._map.draw(X, numbers_of(shown), key_frame, whole)
            parts = place.split([len(own) for own in shown], dim=1)
            placed["map"] = {own.name: own.at(part) for own, part in zip(shown, parts, strict=True)}
            spaces.append(self._start("map", placed["map"], whole))
        else:
            order = torch.arange(X.shape[1])
            near = self.engine.neighbors(X, X, NeighborsParams(2, order, order))
        columns["intrinsic_dimension"] = intrinsic_dimension(near.distances)
        # 3. how far the classes of each kind of labels lie apart in the spaces that have rows: (layers,) each
        spread = {
            (own.name, kind, space): class_distance_normalized_variance(own.X, torch.as_tensor(codes))
            for space, splits in placed.items()
            if space in wanted
            for own in splits.values()
            for kind, codes in own.labels.items()
            if ("all", kind) in self.plan.rows(space, own.labels)
        }
        return spaces, Found([space.tensors() for space in spaces], columns, spread, place, warm=warm), shown

    def _launch_step(self, points: Mapping[str, Points], whole: Whole | None) -> tuple[list[PendingSpace], Found]:
        """Score task labels on the map's training points: warm centroids, few steps of the map, no nulls."""
        spaces: list[PendingSpace] = []
        moved = None
        for train in points.values():
            alone = replace(train, labels={"task": train.labels["task"]})
            in_spaces = {"hidden": alone}
            # the map's first points take a few steps: (layers, m, d) -> (layers, m, 2)
            moved = self._map.move(train.X, numbers_of([train]), whole)
            if moved is not None:
                in_spaces["map"] = alone.at(moved.points)
            for name, own in in_spaces.items():
                init = self._going_on(_task_clusters(name, own.name, own.labels), whole)
                near = moved.near if moved is not None and name == "hidden" else None
                space = Space(name, {own.name: own}, own, STEP_PLAN, init, near)
                pending = start_space(
                    space, engine=self.engine, scoring=self._step_scoring[bool(init)], divisions=self.divisions
                )
                self._centroids.update(self._kept(pending.centroids, whole))
                spaces.append(pending)
        columns, on_map = (moved.columns, moved.placed) if moved is not None else ({}, None)
        return spaces, Found([space.tensors() for space in spaces], columns, {}, placed=on_map, warm=True)

    def _start(self, name: str, points: Mapping[str, Points], whole: Whole | None) -> PendingSpace:
        """Start the rows of a full probe in one space, and keep the bank's task clusters for step probes."""
        bank = next(iter(points.values()))
        space = Space(name, points, bank, self.plan.rows(name, bank.labels))
        pending = start_space(space, engine=self.engine, scoring=self._scoring, divisions=self.divisions)
        wanted = _task_clusters(name, bank.name, bank.labels)
        new = self._kept({wanted: pending.centroids[wanted]}, whole)
        self._centroids = {of: value for of, value in self._centroids.items() if of.space != name} | new
        return pending

    def _going_on(self, name: ClusterSet, whole: Whole | None) -> dict[ClusterSet, Tensor]:
        """Give the centroids to go on from, none where there are none yet of a layer that can be scored now."""
        if name not in self._centroids:
            return {}
        own = self._centroids[name]
        if not self._gaps:
            return {name: own}
        lacks = own.isnan().flatten(2).any(2).any(0)
        # a wait on a GPU, but only after a layer that never could be scored
        if bool((lacks if whole is None else lacks & whole.ok).any()):
            return {}
        return {name: own.nan_to_num(0.0)}

    def _kept(self, new: Mapping[ClusterSet, Tensor], whole: Whole | None) -> dict[ClusterSet, Tensor]:
        """Keep the last centroids of the layers that are not scored.

        Shapes: (sets, layers, k, d) by name
        """
        if whole is None:
            return dict(new)
        kept = {}
        for name, own in new.items():
            old = self._centroids.get(name)
            kept[name] = whole.keep(own.transpose(0, 1), None if old is None else old.transpose(0, 1)).transpose(0, 1)
        return kept


def _task_clusters(space: str, split: str, labels: Mapping[str, Labels]) -> ClusterSet:
    """Name the task clusters of all points at hand, which may lack a task."""
    return ClusterSet(space, split, "all", factorize(labels["task"])[1])
