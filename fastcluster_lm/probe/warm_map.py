"""Draw the map of each probe from where the last one ended: where points start, when it starts anew, how good it is."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from fastcluster_lm.config import ScoresConfig
from fastcluster_lm.kernels.neighbor_votes import first_others
from fastcluster_lm.kernels.transfer import to_device
from fastcluster_lm.probe.whole_layers import Whole
from fastcluster_lm.scores.engines.params import Engine, Neighbors, NeighborsParams, TsneParams
from fastcluster_lm.scores.geometry import neighbor_overlap, trustworthiness

# retained points whose mean place a new point starts from, and the least share of them that a warm map needs
START_FROM, RETAINED = 3, 0.5
# a layer that kept a smaller share of its neighbours goes on from a map this much smaller, in which clusters can pass
# each other: on full-sized ones they are stuck (`fclm bench maps` measures it)
STEADY, DRAWN_TOGETHER = 0.9, 0.1
# the column that decides on the next map and stands in no row
PRESERVED = "preserved"


class Drawn(NamedTuple):
    """Points of a map after its steps, and how good it is.

    columns: (layers,) float64 on the device, of a whole map for `settle` too, once they are on the host
    near:    the nearest neighbours of the states among themselves
    warm:    whether the map went on from the last one
    placed:  which layers have a place on it; None: all have
    """

    points: Float[Tensor, "layers n 2"]
    columns: dict[str, Float[Tensor, " layers"]]
    near: Neighbors
    warm: bool
    placed: Bool[Tensor, " layers"] | None = None


class WarmMap:
    """Draw maps of the same points again and again; what the next one depends on can be saved."""

    def __init__(self, config: ScoresConfig, engine: Engine, seed: int) -> None:
        self.config, self.engine, self.seed = config, engine, seed
        self.points: Tensor | None = None
        self._ids: Tensor | None = None
        # neighbours at the last full probe, the share that the last cold map preserved (host), whether the next must be
        # cold
        self._neighbors: Tensor | None = None
        self._neighbor_ids = torch.empty(0, dtype=torch.int64)
        self._preserved: Tensor | None = None
        self._restart = False
        # whether a layer has no map yet, which is then NaN, or had no neighbours at the last full probe, which are -1
        self._gaps = False

    def draw(
        self, X: Float[Tensor, "layers n d"], ids: Int[Tensor, " n"], key_frame: bool, whole: Whole | None = None
    ) -> Drawn:
        """Draw all points, cold at a key frame, after the map lost its neighbours, or where the engine must.

        A layer that is not `whole` is drawn in the likeness of another; of its own map it keeps what it had, to go on
        from once it can be scored again. One that never had a map makes the first one with it cold, for all
        Shapes: X (layers, n, d), ids (n,) of the instances, on the host -> points (layers, n, 2)
        """
        # 1. neighbours once: for affinities, dimension, overlap, and where new points start; own (layers, n, k)
        k, n = self.config.n_neighbors, X.shape[1]
        used, order = self._params().affinity_neighbors(n), torch.arange(n)
        near = self.engine.neighbors(X, X, NeighborsParams(max(used, k), order, order))
        # 2. warm or cold: points start where they were on the last map, or anew
        cold = key_frame or self._restart or not self.engine.warm_maps or self._closes_gap(whole)
        own = near.indices[..., :k]
        overlap = None
        if self._neighbors is not None and torch.equal(ids, self._neighbor_ids):
            overlap = neighbor_overlap(own, self._neighbors)
            if self._gaps:
                overlap = torch.where(self._neighbors[:, 0, 0] < 0, torch.nan, overlap)
        start = None if cold else self._start(X, near, ids)  # (layers, n, 2)
        warm = start is not None
        init = None if start is None else _drawn_together(_filled(start, whole), overlap)
        # 3. the descent, over the neighbours at hand
        known = Neighbors(near.distances[..., :used], near.indices[..., :used])
        params = self._params(self.config.warm_iter if warm else self.config.n_iter, init, known)
        points, kl = self.engine.tsne(X, params)
        # 4. how good the map is, by its own neighbours: (layers,) each
        on_map = self.engine.neighbors(points, points, NeighborsParams(k, order, order)).indices
        columns = {"kl": kl, "trustworthiness": trustworthiness(X, on_map)}
        if overlap is not None:
            columns["neighbor_overlap"] = overlap
        columns[PRESERVED] = neighbor_overlap(own, on_map)
        # 5. what the next map goes on from; a layer that was not scored keeps its last one
        kept = points
        if whole is not None:
            same = self._ids is not None and torch.equal(ids, self._ids)
            kept = whole.keep(points, start if start is not None else self.points if same else None)
            own = torch.where(whole.spread(whole.ok, own), own, -1)
            columns[PRESERVED] = torch.where(whole.ok, columns[PRESERVED], torch.nan)
        self.points, self._ids = kept, ids.clone()
        self._neighbors, self._neighbor_ids = own, ids.clone()
        return Drawn(points, columns, near, warm)

    def settle(self, columns: Mapping[str, Tensor], *, warm: bool, whole: bool = True) -> None:
        """Take the columns of the map that was drawn, on the host, and see whether the next one must start cold.

        whole: whether every layer could be scored
        """
        preserved = columns[PRESERVED]
        if not warm or self._preserved is None:
            self._preserved = preserved
        # a layer that cannot be scored now, or could not be when the last cold map was drawn, has no say
        lost = self._preserved - preserved
        self._restart = bool(lost[lost.isfinite()].mean() > self.config.key_frame_margin)
        if self._gaps or not whole:
            assert self.points is not None and self._neighbors is not None
            self._gaps = bool(self.points.isnan().any()) or bool((self._neighbors < 0).any())

    def _closes_gap(self, whole: Whole | None) -> bool:
        """Say whether a layer without a map of its own can be scored now; a wait on a GPU, but only after a gap."""
        if not self._gaps or self.points is None:
            return False
        lacks = self.points.isnan().flatten(1).any(1)
        return bool((lacks if whole is None else lacks & whole.ok).any())

    def move(self, X: Float[Tensor, "layers m d"], ids: Int[Tensor, " m"], whole: Whole | None = None) -> Drawn | None:
        """Let the first m points take a few steps; None where too few are on the map, or none is asked for or possible.

        Shapes: X (layers, m, d), ids (m,) -> points (layers, m, 2)
        """
        if self.config.step_iter == 0 or not self.engine.warm_maps:
            return None
        if self.points is None or self._ids is None or len(self._ids) < len(ids):
            return None
        m = X.shape[1]
        # 1. fewer points than the whole map's lie as much thinner, so that as many fewer reach as far
        share = m / self._ids.shape[0]
        used, order = self._params(share=share).affinity_neighbors(m), torch.arange(m)
        near = self.engine.neighbors(X, X, NeighborsParams(used, order, order))
        # 2. from where they were, new ones beside their nearest
        init = self._start(X, near, ids)  # (layers, m, 2)
        if init is None:
            return None
        # 3. layers that are not whole, or never had a map, are moved in the likeness of another and placed nowhere
        placed: Tensor | None = None
        if self._gaps or whole is not None:
            ok = torch.ones(len(init), dtype=torch.bool, device=init.device) if whole is None else whole.ok
            placed = ok & ~init.isnan().flatten(1).any(1)
        on_map = None if placed is None else Whole.of(placed)
        params = self._params(self.config.step_iter, _filled(init, on_map), near, share)
        points, kl = self.engine.tsne(X, params)
        # 4. the whole map goes on with these points at their new places
        self.points, self._ids = self.points.clone(), self._ids.clone()
        self.points[:, :m] = points if on_map is None else on_map.keep(points, init)
        self._ids[:m] = ids
        return Drawn(points, {"kl": kl}, near, True, placed)

    def state(self) -> dict[str, Tensor]:
        """Give all that the next map depends on."""
        if self.points is None or self._ids is None or self._neighbors is None or self._preserved is None:
            return {}
        return {
            "map": self.points,
            "ids": self._ids,
            "neighbors": self._neighbors.int(),
            "neighbor_ids": self._neighbor_ids,
            "preserved": self._preserved,
            "restart": torch.tensor([self._restart], dtype=torch.uint8),
        }

    def load_state(self, state: Mapping[str, Tensor], device: torch.device) -> None:
        """Go on from a saved state."""
        if "map" not in state:
            return
        self.points, self._neighbors = state["map"].to(device), state["neighbors"].to(device).long()
        self._ids, self._neighbor_ids, self._preserved = state["ids"], state["neighbor_ids"], state["preserved"]
        self._restart = bool(state["restart"][0])
        self._gaps = bool(self.points.isnan().any()) or bool((self._neighbors < 0).any())

    def _params(
        self, n_iter: int = 1, init: Tensor | None = None, near: Neighbors | None = None, share: float = 1.0
    ) -> TsneParams:
        return TsneParams(
            perplexity=max(1.0, self.config.perplexity * share),
            n_iter=n_iter,
            seed=self.seed,
            init=init,
            neighbors=near,
            min_gradient_norm=self.config.min_gradient_norm,
        )

    def _start(self, X: Tensor, near: Neighbors, ids: Tensor) -> Tensor | None:
        """Place points where they were, and new ones at the mean of their nearest retained points."""
        if self.points is None or self._ids is None or len(self._ids) < len(ids):
            return None
        n = len(ids)
        points, kept = self.points[:, :n], (ids == self._ids[:n]).numpy()
        if kept.all():
            return points
        retained, new = np.flatnonzero(kept), np.flatnonzero(~kept)
        if len(retained) < max(START_FROM, RETAINED * n):
            return None
        # most often enough retained points are among the neighbours that are known
        of_new = near.indices[:, to_device(new, near.indices.device)]
        closest = first_others(
            of_new, torch.zeros(len(new), dtype=torch.int64), torch.from_numpy(kept).long(), START_FROM
        )
        if closest is None:
            near_new, near_kept = (X[:, to_device(part, X.device)] for part in (new, retained))
            found = self.engine.neighbors(near_new, near_kept, NeighborsParams(START_FROM)).indices
            closest = to_device(retained, X.device)[found]
        layer = torch.arange(len(points), device=points.device)[:, None, None]
        start = points.clone()
        start[:, to_device(new, points.device)] = points[layer, closest].mean(2)
        return start


def _drawn_together(points: Tensor, overlap: Tensor | None) -> Tensor:
    """Make the maps of layers smaller whose points have moved, or may have: those that share too few neighbours.

    Shapes: points (layers, n, 2), overlap (layers,) or None where nothing is known of it
    """
    if overlap is None:
        return points * DRAWN_TOGETHER
    # NaN where a layer had no neighbours then
    return points * torch.where(overlap >= STEADY, 1.0, DRAWN_TOGETHER).to(points.dtype)[:, None, None]


def _filled(start: Tensor, whole: Whole | None) -> Tensor:
    """Let a layer without a start, or in the likeness of another, start from that one's."""
    return start if whole is None else whole.stand_in(start).nan_to_num(0.0)
