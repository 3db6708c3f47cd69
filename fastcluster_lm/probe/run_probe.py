"""One probe of a run after the other: states in, rows and a map out; what it keeps between probes can be saved."""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from fastcluster_lm.config import ScoresConfig
from fastcluster_lm.data import Instances
from fastcluster_lm.errors import ConfigError
from fastcluster_lm.model import Evaluator
from fastcluster_lm.probe.cadence import Cadence
from fastcluster_lm.probe.probe_set import ProbeSet
from fastcluster_lm.probe.samples import FreshSource, RingSource, Sample
from fastcluster_lm.probe.warm_map import WarmMap
from fastcluster_lm.scores.clusters import PLANS, Divisions, Scoring, score_space
from fastcluster_lm.scores.engines.params import Engine
from fastcluster_lm.scores.geometry import class_distance_normalized_variance

# what a step probe scores
STEP_PLAN = (("all", "task"),)


@dataclass(frozen=True)
class ProbeResult:
    """What one probe gave.

    Shapes: maps: points (layers, n_train + n_val, 2) float32, and (n_train + n_val,) int64 labels and the instances'
            numbers beside them; empty for a step probe
    Units:  seconds of wall clock for the whole probe, the states' forward passes included
    """

    rows: list[dict[str, Any]]
    maps: dict[str, np.ndarray]
    warm: bool
    seconds: float


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
        self._divisions = Divisions()
        self._map = WarmMap(config, engine, seed)
        # centroids that the next step probe's KMeans goes on from, by space, split, group and number
        self._centroids: dict[str, Tensor] = {}
        self._check_reachable()

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
        full = self.cadence.is_full(step)
        train, source, age = self._take_train(step, shown=not full)
        rows: list[dict[str, Any]] = []
        maps: dict[str, np.ndarray] = {}
        warm = True
        if train is not None and full:
            rows, maps, warm = self._score_full(step, train)
        elif train is not None:
            rows = self._score_step(train)
        for row in rows:
            own = source if row["split"] == "train" else "fresh"
            row.update(step=step, tier="full" if full else "step", source=own, age_steps=age if own == "batch" else 0)
        return ProbeResult(rows, maps, warm, time.perf_counter() - started)

    def state(self) -> dict[str, Tensor]:
        """Give all that the next probe depends on: the map and what measures it, centroids, the ring."""
        state = dict(self._map.state())
        state |= {f"centroids/{name}": value for name, value in self._centroids.items()}
        if self._ring is not None:
            state |= {f"ring/{name}": value for name, value in self._ring.ring.state().items()}
        return state

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Go on from a saved state."""
        device = self.sets["train"].instances.tokens.device
        self._map.load_state(state, device)
        self._centroids = {
            name.removeprefix("centroids/"): value.to(device)
            for name, value in state.items()
            if name.startswith("centroids/")
        }
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
        sample = self._ring.take()
        return sample.shown() if shown else sample, "batch", self._ring.ring.mean_age(step)

    def _score_full(self, step: int, train: Sample) -> tuple[list[dict[str, Any]], dict[str, np.ndarray], bool]:
        samples = {"train": train, "val": self._sources["val"].take(self.evaluator)}
        rows = self._score_space("hidden", {name: sample.split() for name, sample in samples.items()})
        shown = [sample.shown() for sample in samples.values()]
        joint, ids = torch.cat([part.states for part in shown], 1), torch.cat([part.ids for part in shown])
        points, columns, warm = self._map.draw(joint, ids, key_frame=self.cadence.is_key_frame(step))
        parts = points.split([len(part.ids) for part in shown], dim=1)
        on_map = {part.name: part.placed(place) for part, place in zip(shown, parts, strict=True)}
        rows += self._score_space("map", {name: sample.split() for name, sample in on_map.items()})
        self._add_geometry(rows, {"hidden": samples, "map": on_map}, columns)
        for row in rows:
            row["warm"] = warm and row["space"] == "map"
        return rows, _stored_map(points, shown), warm

    def _score_step(self, train: Sample) -> list[dict[str, Any]]:
        """Score task labels on the map's training points: warm centroids, few steps of the map, no nulls."""
        spaces = {"hidden": train.split("task")}
        moved = self._map.move(train.states, train.ids)
        if moved is not None:
            spaces["map"] = train.placed(moved[0]).split("task")
        rows = []
        for space, split in spaces.items():
            # the points at hand may lack a task, and then have fewer clusters than there are centroids for
            name = _task_clusters(space, split.labels["task"])
            own = {name: self._centroids[name]} if name in self._centroids else {}
            scoring = replace(self._scoring, n_init=0 if own else 1, n_nulls=0)
            scored = score_space(
                {"train": split},
                split,
                space=space,
                plan=STEP_PLAN,
                scoring=scoring,
                engine=self.engine,
                kmeans_init=own,
                divisions=self._divisions,
                near=moved[2] if moved is not None and space == "hidden" else None,
            )
            self._centroids.update(scored.centroids)
            rows += scored.rows
        for row in rows:
            row["warm"] = True
            if row["space"] == "map" and moved is not None:
                row["kl"] = float(moved[1][row["layer"]])
        return rows

    def _score_space(self, space: str, splits: dict[str, Any]) -> list[dict[str, Any]]:
        scored = score_space(
            splits,
            splits["train"],
            space=space,
            plan=PLANS[space],
            scoring=self._scoring,
            engine=self.engine,
            divisions=self._divisions,
        )
        # step probes go on from the task clusters of all training points
        wanted = _task_clusters(space, splits["train"].labels["task"])
        self._centroids = {name: value for name, value in self._centroids.items() if not name.startswith(f"{space}/")}
        self._centroids |= {name: value for name, value in scored.centroids.items() if name == wanted}
        return scored.rows

    def _add_geometry(
        self, rows: list[dict[str, Any]], spaces: Mapping[str, Mapping[str, Sample]], columns: dict[str, Tensor]
    ) -> None:
        """Fill the columns of group "all" that come from neighbours and class means; None where they are undefined."""
        values = {name: tensor.tolist() for name, tensor in columns.items()}
        spread: dict[tuple[str, str, str], list[float]] = {}
        for space, samples in spaces.items():
            for name, sample in samples.items():
                for kind, codes in sample.labels.items():
                    own = torch.as_tensor(codes, device=sample.states.device)
                    spread[name, kind, space] = class_distance_normalized_variance(sample.states, own).tolist()
        by_space = {"hidden": ("intrinsic_dimension", "neighbor_overlap"), "map": ("kl", "trustworthiness")}
        for row in rows:
            if row["group"] != "all":
                continue
            found = {name: values[name][row["layer"]] for name in by_space[row["space"]] if name in values}
            found["cdnv"] = spread[row["split"], row["labels"], row["space"]][row["layer"]]
            row.update({name: value if math.isfinite(value) else None for name, value in found.items()})

    def _check_reachable(self) -> None:
        """Refuse a k for which even perfect clusters could not fill every neighbour list with the query's own task."""
        fresh, k = self._sources["train"].sample, self.config.n_neighbors
        labels = fresh.labels
        groups = {
            "input": labels["input"],
            "input and output": labels["input"] * (labels["output"].max() + 1) + labels["output"],
        }
        apart = {"other instructions": fresh.instructions}
        if len(np.unique(labels["distribution"])) > len(np.unique(labels["task"])):
            apart["other distributions"] = labels["distribution"]
        for group_name, group in groups.items():
            for apart_name, identity in apart.items():
                fewest = _fewest_partners(labels["task"], group, identity)
                if fewest < k:
                    raise ConfigError(
                        f"scores.n_neighbors: expected at most {fewest}, the fewest points of one task and "
                        f"{group_name} under {apart_name} in the probe set, got {k}; raise probe.n_points or lower it"
                    )


def _task_clusters(space: str, task: Any) -> str:
    """Name the centroids of the training points' task clusters, as score_space does."""
    return f"{space}/train/all/{len(np.unique(np.asarray(task)))}"


def _stored_map(points: Tensor, shown: Sequence[Sample]) -> dict[str, np.ndarray]:
    kept = {
        kind: np.concatenate([sample.labels[kind] for sample in shown])
        for kind in ("task", "distribution", "input", "output")
    }
    is_val = np.repeat([0, 1], [len(sample.ids) for sample in shown])
    ids = torch.cat([sample.ids for sample in shown]).cpu().numpy()
    return {"points": points.cpu().numpy(), "is_val": is_val, "ids": ids, **kept}


def _fewest_partners(task: np.ndarray, group: np.ndarray, identity: np.ndarray) -> int:
    """Count, for the worst-placed point, the points of its task and group that have another identity."""
    cell = np.unique(np.stack([task, group]), axis=1, return_inverse=True)[1].ravel()
    both = np.unique(np.stack([cell, identity]), axis=1, return_inverse=True)[1].ravel()
    return int((np.bincount(cell)[cell] - np.bincount(both)[both]).min())
