"""nearest_neighbors in torch, in tiles of queries: where neither C++ nor Triton can take the points."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from fastcluster_lm.kernels.nearest_neighbors.search import Search
from fastcluster_lm.kernels.rounding import SPARE, matmul_rounding

DIRECT = "donot_use_mm_for_euclid_dist"


def nearest_neighbors_in_tiles(
    queries: Float[Tensor, "layers nq d"], bank: Float[Tensor, "layers nb d"], search: Search
) -> tuple[Float[Tensor, "layers nq k"], Int[Tensor, "layers nq k"]]:
    """Give each query its nearest bank points, nearest first.

    Shapes: as op.py's
    """
    n_layers, n_queries, width = queries.shape
    n_bank, k = bank.shape[1], search.k
    centred_queries, centred_bank = (queries - search.centre).float(), (bank - search.centre).float()
    distances = torch.empty(n_layers, n_queries, k, device=queries.device)
    indices = torch.empty(n_layers, n_queries, k, dtype=torch.int64, device=queries.device)
    n_candidates = min(k + SPARE, n_bank)
    # a gathered candidate costs more than a direct distance, so few points are compared in full; and on CUDA a second
    # look at doubtful rows would wait for the device
    direct = 4 * n_candidates >= n_bank or queries.is_cuda
    row_bytes = queries.element_size() * n_layers * max(n_bank, 1 if direct else n_candidates * width)
    rows = max(1, search.memory_budget // row_bytes)
    for start in range(0, n_queries, rows):
        tile = slice(start, min(start + rows, n_queries))
        mask = _forbidden(search, tile)
        if direct:
            found = search_full(queries[:, tile], bank, mask, k)
        else:
            proposed = _propose(centred_queries[:, tile], centred_bank, mask, n_candidates)
            found = _search_candidates(queries[:, tile], bank, mask, k, proposed, search.memory_budget)
        # scaled before it is rounded, since points may be float64
        apart = found[0] if search.scale is None else found[0] * search.scale
        distances[:, tile], indices[:, tile] = apart.float(), found[1]
    return distances, indices


def _forbidden(search: Search, tile: slice) -> Bool[Tensor, "*layers rows nb"] | None:
    """Mark the bank points that share an id with the queries of a tile; None where no ids are given."""
    if search.ids is None:
        return None
    own, others = search.ids
    return own[..., tile, None] == others[..., None, :]


def search_full(queries: Tensor, bank: Tensor, mask: Tensor | None, k: int) -> tuple[Tensor, Tensor]:
    """Compare with the whole bank by direct differences and sort whole rows, which settles every tie."""
    block = torch.cdist(queries, bank, compute_mode=DIRECT)  # (layers, rows, nb)
    if mask is not None:
        block.masked_fill_(mask, torch.inf)
    distances, indices = block.sort(dim=-1, stable=True)
    return distances[..., :k], indices[..., :k]


class Proposal(NamedTuple):
    """Bank points that may be the nearest, in the order of their indices, and which of them may be neighbours at all.

    Shapes: candidates and admissible (layers, rows, c), floor (layers, rows): no point left out is nearer than its
            square root, whatever the matmul rounded; infinite where no admissible one is left out
    """

    candidates: Int[Tensor, "layers rows c"]
    admissible: Bool[Tensor, "layers rows c"]
    floor: Float[Tensor, "layers rows"]


def _propose(queries: Tensor, bank: Tensor, mask: Tensor | None, n_candidates: int) -> Proposal:
    """Let one matmul of centred points propose candidates."""
    query_sq = queries.square().sum(-1)  # (layers, rows)
    bank_sq = bank.square().sum(-1)  # (layers, nb)
    block = torch.baddbmm(bank_sq[:, None, :], queries, bank.mT, alpha=-2)  # (layers, rows, nb), less |query|^2
    if mask is not None:
        block.masked_fill_(mask, torch.inf)
    proposed, candidates = block.topk(n_candidates, dim=-1, largest=False, sorted=False)
    candidates, order = candidates.sort(dim=-1)
    proposed = proposed.gather(-1, order)
    rounding = matmul_rounding(queries.shape[-1]) * (query_sq + bank_sq.amax(-1, keepdim=True))
    return Proposal(candidates, proposed != torch.inf, proposed.amax(-1) + query_sq - rounding)


def _search_candidates(
    queries: Tensor, bank: Tensor, mask: Tensor | None, k: int, proposal: Proposal, memory_budget: int
) -> tuple[Tensor, Tensor]:
    """Rank the candidates by direct differences; a row whose k-th may tie with a point left out is searched in full."""
    exact = _gather_points(bank, proposal.candidates)  # (layers, rows, c, d)
    exact = exact.sub_(queries[:, :, None, :]).square_().sum(-1).sqrt_()
    exact.masked_fill_(~proposal.admissible, torch.inf)
    distances, order = exact.sort(dim=-1, stable=True)
    distances, indices = distances[..., :k].contiguous(), proposal.candidates.gather(-1, order)[..., :k]
    doubtful = distances[..., -1].square() >= proposal.floor
    for layer, row in rows_by_layer(doubtful, max(1, memory_budget // (bank.element_size() * bank.shape[1]))):
        layer_mask = None if mask is None else (mask if mask.ndim == 2 else mask[layer])[row]
        distances[layer, row], indices[layer, row] = search_full(queries[layer, row], bank[layer], layer_mask, k)
    return distances, indices


def _gather_points(bank: Tensor, indices: Tensor) -> Tensor:
    n_layers, n_bank, width = bank.shape
    start = torch.arange(n_layers, device=bank.device)[:, None, None] * n_bank
    return bank.reshape(-1, width).index_select(0, (indices + start).flatten()).view(*indices.shape, width)


def rows_by_layer(doubtful: Tensor, rows: int) -> Iterator[tuple[int, Tensor]]:
    """Yield (layer, rows) of the doubtful queries in blocks within the memory budget; one wait on the device."""
    if not bool(doubtful.any()):
        return
    for layer in doubtful.any(-1).nonzero().flatten().tolist():
        for row in doubtful[layer].nonzero().flatten().split(rows):
            yield layer, row
