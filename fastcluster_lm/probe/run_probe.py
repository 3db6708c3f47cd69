"""One probe of a run after the other: states in, rows and a map out; what it keeps between probes can be saved."""

import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor

from fastcluster_lm.config import ScoresConfig
from fastcluster_lm.data import Instances
from fastcluster_lm.errors import ConfigError
from fastcluster_lm.kernels.deferred import Checks, deferred
from fastcluster_lm.model import Evaluator
from fastcluster_lm.probe.cadence import Cadence
from fastcluster_lm.probe.pending import PendingProbe, ProbeResult, Taken, launch_full
from fastcluster_lm.probe.probe_set import ProbeSet
from fastcluster_lm.probe.samples import FreshSource, RingSource, Sample
from fastcluster_lm.probe.warm_map import WarmMap
from fastcluster_lm.probe.whole_layers import FINITE, PLACED, Whole, whole_layers
from fastcluster_lm.scores.clusters import PLANS, Divisions, PendingSpace, Scoring, Split, start_space
from fastcluster_lm.scores.engines.params import Engine

# what a step probe scores
STEP_PLAN = (("all", "task"),)


class RunProbe:
    """Score a model's states; the model, the batches and every generator are left alone.

    train is all training instances where states of training batches are to be scored, None for the probe set's alone
    """

    def __init__(
        self,
        evaluator: Evaluator,
        sets: dict[str, ProbeSet],
        n_inputs: int,
        config: ScoresConfig,
        engine: Engine,
        cadence: Cadence,
        *,
        n_layers: int,
        d_model: int,
        seed: int,
        train: Instances | None = None,
    ) -> None:
        self._n_inputs, self._n_layers, self._d_model = n_inputs, n_layers, d_model
        self.evaluator = evaluator
        self.sets = sets
        self.config = config
        self.engine = engine
        self.cadence = cadence
        # numbers of validation instances begin beyond all that training could have
        first_id = {"train": 0, "val": 2**40}
        self._sources = {
            name: FreshSource(name, chosen, n_inputs, n_layers + 1, d_model, first_id[name])
            for name, chosen in sets.items()
        }
        self._ring: RingSource | None = None
        if train is not None:
            shown = len(self._sources["train"].on_map)
            slots = min(len(sets["train"].instances), len(train))
            self._ring = RingSource(train, n_inputs, n_layers + 1, slots, shown, d_model)
        self._scoring = Scoring(n_neighbors=config.n_neighbors, n_init=config.n_init, n_nulls=config.n_nulls, seed=seed)
        # of a step probe, the first and those that go on from its centroids
        self._step_scoring = [replace(self._scoring, n_init=n_init, n_nulls=0) for n_init in (1, 0)]
        self._divisions = Divisions()
        self._device = sets["train"].instances.tokens.device
        self._map = WarmMap(config, engine, seed)
        # centroids that the next step probe's KMeans goes on from, by space, split, group and number
        self._centroids: dict[str, Tensor] = {}
        # whether a layer has none of its own, since it never could be scored; they are then NaN
        self._gaps = False
        fresh = self._sources["train"].sample
        check_reachable(fresh.labels, fresh.instructions, config.n_neighbors)

    def again(self, *, cadence: Cadence, seed: int) -> "RunProbe":
        """Give a probe of the same model and instances that has seen nothing yet, with its own cadence and seed."""
        return RunProbe(
            self.evaluator,
            self.sets,
            self._n_inputs,
            self.config,
            self.engine,
            cadence,
            n_layers=self._n_layers,
            d_model=self._d_model,
            seed=seed,
        )

    @property
    def streams(self) -> bool:
        """Whether it scores the states of training batches, and so wants to observe them."""
        return self._ring is not None

    def needs_weights(self, step: int) -> bool:
        """Say whether the probe of this step runs the model: a step probe of streamed states does not."""
        return self._ring is None or self.cadence.is_full(step)

    def resolved(self) -> dict[str, Any]:
        """Say how many points are scored, once the asked numbers were made to fit the cells."""
        return {
            "probe_points": {name: len(source.instances) for name, source in self._sources.items()},
            "map_points": {name: len(source.on_map) for name, source in self._sources.items()},
            "probes": self.cadence.count(),
        }

    def observe(self, batch: Int[Tensor, " B"], states: Float[Tensor, "B layers d"], step: int) -> None:
        """Take the states that a training step's forward gave, of the weights before its update.

        Shapes: batch (B,) numbers of training instances, states (B, layers, d)
        """
        if self._ring is not None:
            self._ring.ring.push(batch, states, step - 1)

    def score(self, step: int) -> ProbeResult:
        """Score every layer, in the hidden space and on its map; a step probe scores less, and has no row too early."""
        started = time.perf_counter()
        result = self.finish(self.launch(self.take(step)))
        return replace(result, seconds=time.perf_counter() - started)

    def take(self, step: int) -> Taken:
        """Give the points of a probe, with the states of the weights as they are now."""
        full = self.cadence.is_full(step)
        train, source, age = self._take_train(step, shown=not full)
        samples = {} if train is None else {"train": train}
        if full:
            samples["val"] = self._sources["val"].take(self.evaluator)
        return Taken(step, full, samples, source, age)

    def launch(self, taken: Taken) -> PendingProbe:
        """Give the device all that the probe needs of it; on a GPU nothing here waits for it.

        The probe before must be finished: whether the map starts anew depends on it
        """
        with deferred(self._device) as checks:
            if taken.full:
                key_frame = self.cadence.is_key_frame(taken.step)
                return launch_full(taken, self._map, self._start_space, key_frame=key_frame, checks=checks)
            return self._launch_step(taken, checks)

    def finish(self, pending: PendingProbe) -> ProbeResult:
        """Make rows and map of what the device found, waiting for it if need be.

        A layer whose states are not finite has rows without scores, and is named in `skipped`
        Errors: what the device had to be asked for
        """
        columns = pending.columns()
        if self._gaps or (FINITE in columns and not bool(columns[FINITE].all())):
            self._gaps = any(bool(own.isnan().any()) for own in self._centroids.values())
        if pending.taken.full:
            self._map.settle(columns, warm=pending.warm)
        return ProbeResult(pending.rows(columns), pending.maps(), pending.warm, 0.0, pending.skipped)

    def state(self) -> dict[str, Tensor]:
        """Give all that the next probe depends on: the map and what measures it, centroids, the ring."""
        state = dict(self._map.state())
        state |= {f"centroids/{name}": value for name, value in self._centroids.items()}
        if self._ring is not None:
            state |= {f"ring/{name}": value for name, value in self._ring.ring.state().items()}
        return state

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Go on from a saved state."""
        self._map.load_state(state, self._device)
        self._centroids = {
            name.removeprefix("centroids/"): value.to(self._device)
            for name, value in state.items()
            if name.startswith("centroids/")
        }
        self._gaps = any(bool(own.isnan().any()) for own in self._centroids.values())
        ring = {name.removeprefix("ring/"): value for name, value in state.items() if name.startswith("ring/")}
        if self._ring is not None and ring:
            self._ring.ring.load_state(ring)

    def _take_train(self, step: int, *, shown: bool) -> tuple[Sample | None, str, float]:
        """Give the training points, where they come from, and the mean age of their weights in steps.

        The ring serves once it is full; until then full probes run the probe set, and step probes wait.
        """
        fresh = self._sources["train"]
        if self._ring is None or not self._ring.ring.full:
            if shown and self._ring is not None:
                return None, "batch", 0.0
            return (fresh.take_shown if shown else fresh.take)(self.evaluator), "fresh", 0.0
        sample = self._ring.take_shown() if shown else self._ring.take()
        return sample, "batch", self._ring.ring.mean_age(step)

    def _launch_step(self, taken: Taken, checks: Checks) -> PendingProbe:
        """Score task labels on the map's training points: warm centroids, few steps of the map, no nulls."""
        started: list[PendingSpace] = []
        columns: dict[str, Tensor] = {}
        samples, whole, finite = whole_layers(taken.samples)
        for train in samples.values():
            spaces = {"hidden": train.split("task")}
            moved = self._map.move(train.states, train.ids, whole)
            if moved is not None:
                spaces["map"] = train.placed(moved[0]).split("task")
                columns["kl"] = moved[1]
                if moved[3] is not None:
                    columns[PLACED] = moved[3]
            # the points at hand may lack a task, and then have fewer clusters than there are centroids for
            n_tasks = _n_codes(train.labels["task"])
            for space, split in spaces.items():
                name = _task_clusters(space, n_tasks)
                own = self._going_on(name, whole)
                pending = start_space(
                    {"train": split},
                    split,
                    space=space,
                    plan=STEP_PLAN,
                    scoring=self._step_scoring[bool(own)],
                    engine=self.engine,
                    kmeans_init=own,
                    divisions=self._divisions,
                    near=moved[2] if moved is not None and space == "hidden" else None,
                )
                self._centroids.update(self._kept(pending.centroids, whole))
                started.append(pending)
        columns |= {f"{FINITE}/{name}": own for name, own in finite.items()}
        return PendingProbe(taken, started, columns, {}, None, [], warm=True, checks=checks)

    def _going_on(self, name: str, whole: Whole | None) -> dict[str, Tensor]:
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

    def _kept(self, new: dict[str, Tensor], whole: Whole | None) -> dict[str, Tensor]:
        """Keep the last centroids of the layers that are not scored.

        Shapes: (sets, layers, k, d) by name
        """
        if whole is None:
            return new
        kept = {}
        for name, own in new.items():
            old = self._centroids.get(name)
            kept[name] = whole.keep(own.transpose(0, 1), None if old is None else old.transpose(0, 1)).transpose(0, 1)
        return kept

    def _start_space(self, space: str, splits: dict[str, Split], whole: Whole | None) -> PendingSpace:
        pending = start_space(
            splits,
            splits["train"],
            space=space,
            plan=PLANS[space],
            scoring=self._scoring,
            engine=self.engine,
            divisions=self._divisions,
        )
        # step probes go on from the task clusters of all training points
        wanted = _task_clusters(space, _n_codes(splits["train"].labels["task"]))
        new = self._kept({name: value for name, value in pending.centroids.items() if name == wanted}, whole)
        self._centroids = {name: value for name, value in self._centroids.items() if not name.startswith(f"{space}/")}
        self._centroids |= new
        return pending


def check_reachable(labels: Mapping[str, np.ndarray], instructions: np.ndarray, n_neighbors: int) -> None:
    """Refuse a k for which even perfect clusters could not fill every neighbour list with the query's own task.

    Errors: ConfigError naming the largest k that could
    """
    groups = {
        "input": labels["input"],
        "input and output": labels["input"] * (labels["output"].max() + 1) + labels["output"],
    }
    apart = {"other instructions": instructions}
    if len(np.unique(labels["distribution"])) > len(np.unique(labels["task"])):
        apart["other distributions"] = labels["distribution"]
    for group_name, group in groups.items():
        for apart_name, identity in apart.items():
            fewest = _fewest_partners(labels["task"], group, identity)
            if fewest < n_neighbors:
                raise ConfigError(
                    f"scores.n_neighbors: expected at most {fewest}, the fewest points of one task and "
                    f"{group_name} under {apart_name} in the probe set, got {n_neighbors}; raise probe.n_points or "
                    "lower it"
                )


def _task_clusters(space: str, n_tasks: int) -> str:
    """Name the centroids of the training points' task clusters, as score_space does."""
    return f"{space}/train/all/{n_tasks}"


def _n_codes(codes: Any) -> int:
    """Count the codes that occur."""
    return len(set(np.asarray(codes).tolist()))


def _fewest_partners(task: np.ndarray, group: np.ndarray, identity: np.ndarray) -> int:
    """Count, for the worst-placed point, the points of its task and group that have another identity."""
    cell = np.unique(np.stack([task, group]), axis=1, return_inverse=True)[1].ravel()
    both = np.unique(np.stack([cell, identity]), axis=1, return_inverse=True)[1].ravel()
    return int((np.bincount(cell)[cell] - np.bincount(both)[both]).min())
