"""Neighbours by FAISS on a GPU: it proposes, direct differences rank, and ties go to the lower index."""

from functools import cache
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from fastcluster_lm.errors import EngineError
from fastcluster_lm.kernels.rounding import SPARE, matmul_rounding
from fastcluster_lm.scores.batches import scaling
from fastcluster_lm.scores.engines._fused_neighbors import find_neighbors
from fastcluster_lm.scores.engines.checks import most_forbidden
from fastcluster_lm.scores.engines.params import Neighbors, NeighborsParams

# most neighbours that FAISS's search on a GPU gives
FAISS_MOST = 2048


def search_layers(
    faiss: Any,
    queries: Float[Tensor, "layers nq d"],
    bank: Float[Tensor, "layers nb d"],
    params: NeighborsParams,
    memory_budget: int,
) -> Neighbors:
    """Search layer by layer; only counts and doubtful rows reach the host, never the points.

    Shapes: queries (layers, nq, d), bank (layers, nb, d), both checked -> distances f32, indices i64, (layers, nq, k)
    Units:  Euclidean, in the units of the input; memory_budget in bytes
    Errors: EngineError for more neighbours than FAISS gives
    """
    if params.n_neighbors + SPARE > FAISS_MOST:
        most = FAISS_MOST - SPARE
        raise EngineError(
            f"n_neighbors is {params.n_neighbors}, engine 'rapids' gives at most {most}; use engine 'fused'"
        )
    n_layers, n_queries, _ = queries.shape
    if n_queries == 0:
        empty = queries.new_empty(n_layers, 0, params.n_neighbors, dtype=torch.float32)
        return Neighbors(empty, empty.long())
    layers = [
        _search(faiss, queries[layer], bank[layer], _of_layer(params, layer, queries.device), memory_budget)
        for layer in range(n_layers)
    ]
    return Neighbors(*(torch.stack(column) for column in zip(*layers, strict=True)))


def _search(
    faiss: Any, queries: Tensor, bank: Tensor, params: NeighborsParams, memory_budget: int
) -> tuple[Tensor, Tensor]:
    """Search one layer.

    Shapes: queries (nq, d), bank (nb, d) -> distances (nq, k) f32, indices (nq, k) i64
    """
    k, n_bank = params.n_neighbors, len(bank)
    queries, bank = (part if part.dtype == torch.float64 else part.float() for part in (queries, bank))
    offset, scale = (part[0] for part in scaling(bank[None]))
    # FAISS squares without centring first, so it gets centred points
    centred, known = (((part - offset) / scale).float().contiguous() for part in (queries, bank))
    spare = 0
    if params.query_ids is not None and params.bank_ids is not None:
        spare = int(most_forbidden(params.query_ids, params.bank_ids))
    asked = min(k + spare + SPARE, n_bank, FAISS_MOST)
    resources = _resources(faiss, memory_budget)
    index = -1 if queries.device.index is None else queries.device.index
    proposed, ranked = faiss.knn_gpu(resources, centred, known, asked, device=index)
    found = _first_admissible(proposed, ranked, params, min(k + SPARE, asked), n_bank)
    rounding = matmul_rounding(bank.shape[1]) * (centred.square().sum(1) + known.square().sum(1).amax())
    rows = max(1, memory_budget // (bank.element_size() * bank.shape[1] * found[0].shape[1]))
    parts = [
        _rank(queries[start : start + rows], bank, scale, k, *(part[start : start + rows] for part in found[:2]))
        for start in range(0, len(queries), rows)
    ]
    sq_dist, indices = (torch.cat(column) for column in zip(*parts, strict=True))
    distances = (sq_dist.sqrt() * scale).float()
    # a row whose k-th neighbour may tie with a point that was left out is searched in full
    doubtful = (sq_dist[:, -1] >= found[2] - rounding).nonzero()[:, 0]
    if len(doubtful):
        ids = params.query_ids if params.query_ids is None else params.query_ids[doubtful]
        again = NeighborsParams(k, ids, params.bank_ids)
        exact = find_neighbors(queries[doubtful][None], bank[None], again, memory_budget)
        distances[doubtful], indices[doubtful] = exact.distances[0], exact.indices[0]
    return distances, indices


def _first_admissible(
    proposed: Tensor, ranked: Tensor, params: NeighborsParams, keep: int, n_bank: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Keep the first admissible ones of what FAISS proposed.

    Shapes: proposed (nq, m) squared, ranked (nq, m) -> candidates (nq, keep), admissible (nq, keep), and floor (nq,):
            no admissible point left out is nearer than its square root, but for rounding; infinite where none is
    """
    # FAISS marks what it could not find by -1
    admissible = ranked >= 0
    candidates = ranked.clamp(min=0)
    if params.query_ids is not None and params.bank_ids is not None:
        admissible &= params.query_ids[:, None] != params.bank_ids[candidates]
    order = (~admissible).to(torch.uint8).argsort(dim=1, stable=True)[:, :keep]
    whole = ranked.shape[1] == n_bank
    beyond = torch.full_like(proposed[:, -1], torch.inf) if whole else proposed[:, -1]
    kept = admissible.gather(1, order)
    last = beyond if whole and keep == n_bank else proposed.gather(1, order[:, -1:])[:, 0]
    return candidates.gather(1, order), kept, torch.where(kept[:, -1], last, beyond)


def _rank(
    queries: Tensor, bank: Tensor, scale: Tensor, k: int, candidates: Tensor, admissible: Tensor
) -> tuple[Tensor, Tensor]:
    """Sort candidates by direct differences, equal ones by index; inadmissible ones come last, infinitely far."""
    candidates, order = candidates.sort(dim=1)
    exact = ((bank[candidates] - queries[:, None]) / scale).square().sum(-1)  # (rows, keep)
    exact.masked_fill_(~admissible.gather(1, order), torch.inf)
    sq_dist, order = exact.sort(dim=1, stable=True)
    return sq_dist[:, :k], candidates.gather(1, order)[:, :k]


def _of_layer(params: NeighborsParams, layer: int, device: torch.device) -> NeighborsParams:
    """Give one layer's parameters, the ids where the points are."""
    ids = [
        None if x is None else (x if x.ndim == 1 else x[layer]).to(device) for x in (params.query_ids, params.bank_ids)
    ]
    return NeighborsParams(params.n_neighbors, *ids)


@cache
def _resources(faiss: Any, memory_budget: int) -> Any:
    """Make FAISS's scratch memory once a process: by default it takes 18 % of a GPU."""
    resources = faiss.StandardGpuResources()
    resources.setTempMemory(memory_budget)
    return resources
