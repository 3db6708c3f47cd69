"""One probe of a run after the other: states in, rows and a map out; what it keeps between probes can be saved."""

import math
import time
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastcluster_lm.config import ScoresConfig
from fastcluster_lm.errors import ConfigError
from fastcluster_lm.model import Evaluator
from fastcluster_lm.probe.cadence import Cadence
from fastcluster_lm.probe.probe_set import ProbeSet
from fastcluster_lm.scores.clusters import PLANS, Scoring, Split, score_space
from fastcluster_lm.scores.engines.params import Engine, Neighbors, NeighborsParams, TsneParams
from fastcluster_lm.scores.geometry import (
    class_distance_normalized_variance,
    intrinsic_dimension,
    neighbor_overlap,
    trustworthiness,
)


@dataclass(frozen=True)
class ProbeResult:
    """What one probe gave.

    Shapes: maps: points (layers, n_train + n_val, 2) float32, and (n_train + n_val,) int64 labels beside them
    Units:  seconds of wall clock for the whole probe, the states' forward passes included
    """

    rows: list[dict[str, Any]]
    maps: dict[str, np.ndarray]
    warm: bool
    seconds: float


class RunProbe:
    """Score a model's states on a fixed probe set; the model, the batches and every generator are left alone."""

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
    ) -> None:
        self._built_with = (evaluator, sets, n_inputs, config, engine)
        self.evaluator = evaluator
        self.sets = sets
        self.config = config
        self.engine = engine
        self.cadence = cadence
        self.seed = seed
        device = sets["train"].instances.tokens.device
        self._states = {
            name: torch.zeros(n_layers + 1, len(chosen.instances), d_model, device=device)
            for name, chosen in sets.items()
        }
        self._on_map = {name: chosen.on_map.nonzero()[:, 0] for name, chosen in sets.items()}
        self._labels = {
            name: {key: values.cpu().numpy() for key, values in chosen.labels(n_inputs).items()}
            for name, chosen in sets.items()
        }
        # the two splits number their instructions apart, and share none
        self._instances = {name: chosen.instances.instruction.cpu().numpy() for name, chosen in sets.items()}
        self._scoring = Scoring(n_neighbors=config.n_neighbors, n_init=config.n_init, n_nulls=config.n_nulls, seed=seed)
        self._labels_on_device = {name: chosen.labels(n_inputs) for name, chosen in sets.items()}
        self._map: Tensor | None = None
        # neighbours of the last probe, how many of them the last cold map preserved, whether the next must be cold
        self._neighbors: Tensor | None = None
        self._preserved: Tensor | None = None
        self._restart = False
        self._check_reachable()

    def again(self, *, cadence: Cadence, seed: int) -> "RunProbe":
        """Give a probe of the same model and instances that has seen nothing yet, with its own cadence and seed."""
        n_layers, _, d_model = self._states["train"].shape
        return RunProbe(*self._built_with, cadence, n_layers=n_layers - 1, d_model=d_model, seed=seed)

    def resolved(self) -> dict[str, Any]:
        """Say how many points are scored, once the asked numbers were made to fit the cells."""
        return {
            "probe_points": {name: len(chosen.instances) for name, chosen in self.sets.items()},
            "map_points": {name: len(index) for name, index in self._on_map.items()},
            "probes": self.cadence.count(),
        }

    def score(self, step: int) -> ProbeResult:
        """Score every layer, in the hidden space and on its map."""
        started = time.perf_counter()
        for name, chosen in self.sets.items():
            self.evaluator.states_into(chosen.instances, self._states[name])
        rows = self._score_space("hidden", self._splits(self._states, None))
        warm = self._map is not None and not self._restart and not self.cadence.is_key_frame(step)
        points, columns = self._draw_map(warm)
        n_train = len(self._on_map["train"])
        on_map = {"train": points[:, :n_train], "val": points[:, n_train:]}
        rows += self._score_space("map", self._splits(on_map, self._on_map))
        self._add_geometry(rows, on_map, columns)
        for row in rows:
            row.update(step=step, tier="full", source="fresh", age_steps=0)
            row["warm"] = warm if row["space"] == "map" else False
        return ProbeResult(rows, self._stored_map(points), warm, time.perf_counter() - started)

    def state(self) -> dict[str, Tensor]:
        """Give all that the next probe depends on: last map, last neighbours, the last key frame's measure."""
        if self._map is None or self._neighbors is None or self._preserved is None:
            return {}
        return {
            "map": self._map,
            "neighbors": self._neighbors.int(),
            "preserved": self._preserved,
            "restart": torch.tensor([self._restart], dtype=torch.uint8),
        }

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Go on from a saved state."""
        if not state:
            return
        device = self._states["train"].device
        self._map, self._preserved = state["map"].to(device), state["preserved"].to(device)
        self._neighbors = state["neighbors"].to(device).long()
        self._restart = bool(state["restart"][0])

    def _splits(self, points: dict[str, Tensor], index: dict[str, Tensor] | None) -> dict[str, Split]:
        splits = {}
        for name, X in points.items():
            keep = slice(None) if index is None else index[name].cpu().numpy()
            labels = {key: values[keep] for key, values in self._labels[name].items()}
            splits[name] = Split(name, X, labels, self._instances[name][keep])
        return splits

    def _score_space(self, space: str, splits: dict[str, Split]) -> list[dict[str, Any]]:
        scored = score_space(
            splits, splits["train"], space=space, plan=PLANS[space], scoring=self._scoring, engine=self.engine
        )
        return scored.rows

    def _draw_map(self, warm: bool) -> tuple[Tensor, dict[str, Tensor]]:
        """Draw the joint map of both splits, and measure it: columns (layers,) by (space, name)."""
        # a warm map goes on from the last probe's
        joint = torch.cat([self._states[name][:, self._on_map[name]] for name in ("train", "val")], 1)
        n, k = joint.shape[1], self.config.n_neighbors
        params = TsneParams(
            perplexity=self.config.perplexity,
            n_iter=self.config.warm_iter if warm else self.config.n_iter,
            seed=self.seed,
            init=self._map if warm else None,
            min_gradient_norm=self.config.min_gradient_norm,
        )
        ids = torch.arange(n, device=joint.device)
        near = self.engine.neighbors(joint, joint, NeighborsParams(max(params.affinity_neighbors(n), k), ids, ids))
        used = params.affinity_neighbors(n)
        known = Neighbors(near.distances[..., :used], near.indices[..., :used])
        points, kl = self.engine.tsne(joint, replace(params, neighbors=known))
        on_map = self.engine.neighbors(points, points, NeighborsParams(k, ids, ids)).indices
        own = near.indices[..., :k]
        preserved = neighbor_overlap(own, on_map)
        columns = {
            "kl": kl,
            "trustworthiness": trustworthiness(joint, on_map),
            "intrinsic_dimension": intrinsic_dimension(near.distances),
        }
        if self._neighbors is not None:
            columns["neighbor_overlap"] = neighbor_overlap(own, self._neighbors)
        if not warm or self._preserved is None:
            self._preserved = preserved
        self._restart = bool((self._preserved - preserved).mean() > self.config.key_frame_margin)
        self._map, self._neighbors = points, own
        return points, columns

    def _add_geometry(self, rows: list[dict[str, Any]], on_map: dict[str, Tensor], columns: dict[str, Tensor]) -> None:
        """Fill the columns of group "all" that come from neighbours and class means; None where they are undefined."""
        values = {name: tensor.tolist() for name, tensor in columns.items()}
        spread = {}
        for name, labels in self._labels_on_device.items():
            for kind, codes in labels.items():
                places = (("hidden", self._states[name], codes), ("map", on_map[name], codes[self._on_map[name]]))
                for space, X, own in places:
                    spread[name, kind, space] = class_distance_normalized_variance(X, own).tolist()
        by_space = {"hidden": ("intrinsic_dimension", "neighbor_overlap"), "map": ("kl", "trustworthiness")}
        for row in rows:
            if row["group"] != "all":
                continue
            found = {name: values[name][row["layer"]] for name in by_space[row["space"]] if name in values}
            found["cdnv"] = spread[row["split"], row["labels"], row["space"]][row["layer"]]
            row.update({name: value if math.isfinite(value) else None for name, value in found.items()})

    def _stored_map(self, points: Tensor) -> dict[str, np.ndarray]:
        keys = ("task", "distribution", "input", "output")
        kept = {
            key: np.concatenate(
                [self._labels[name][key][self._on_map[name].cpu().numpy()] for name in ("train", "val")]
            )
            for key in keys
        }
        is_val = np.repeat([0, 1], [len(self._on_map["train"]), len(self._on_map["val"])])
        return {"points": points.cpu().numpy(), "is_val": is_val, **kept}

    def _check_reachable(self) -> None:
        """Refuse a k for which even perfect clusters could not fill every neighbour list with the query's own task."""
        labels, k = self._labels["train"], self.config.n_neighbors
        groups = {
            "input": labels["input"],
            "input and output": labels["input"] * (labels["output"].max() + 1) + labels["output"],
        }
        apart = {"other instructions": self._instances["train"]}
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


def _fewest_partners(task: np.ndarray, group: np.ndarray, identity: np.ndarray) -> int:
    """Count, for the worst-placed point, the points of its task and group that have another identity."""
    cell = np.unique(np.stack([task, group]), axis=1, return_inverse=True)[1].ravel()
    both = np.unique(np.stack([cell, identity]), axis=1, return_inverse=True)[1].ravel()
    return int((np.bincount(cell)[cell] - np.bincount(both)[both]).min())
