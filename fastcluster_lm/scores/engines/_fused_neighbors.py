"""Exact nearest neighbours over all layers at once, in tiles of queries; ties go to the lower index."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from fastcluster_lm.kernels.nearest_neighbors import (
    DIRECT_WIDTH,
    MOST_NEIGHBORS,
    nearest_neighbors_fused,
    nearest_neighbors_native,
    nearest_neighbors_under_each,
    room_for,
)
from fastcluster_lm.kernels.rounding import SPARE, matmul_rounding
from fastcluster_lm.kernels.transfer import to_device
from fastcluster_lm.scores.batches import WHOLE_BYTES, Frame, spared_scaling
from fastcluster_lm.scores.engines.checks import check_neighbors, forbidden
from fastcluster_lm.scores.engines.params import Neighbors, NeighborsParams
from fastcluster_lm.scores.precision import full_precision

# most bytes of one block of distances or of gathered candidates, where the caller names none
MEMORY_BUDGET = 256 * 2**20
# in a frame's units: distances of at least the first have squares that float32 holds in full, and so have those of
# unlike points whose coordinates are 0 or at least the second
LEAST_HELD, LEAST_COORDINATE = 2.0**-45, 2.0**-39
DIRECT = "donot_use_mm_for_euclid_dist"


@torch.no_grad()
def find_neighbors(
    queries: Float[Tensor, "layers nq d"],
    bank: Float[Tensor, "layers nb d"],
    params: NeighborsParams,
    memory_budget: int = MEMORY_BUDGET,
) -> Neighbors:
    """Give each query its nearest bank points, nearest first.

    Shapes: queries (layers, nq, d), bank (layers, nb, d) -> distances f32, indices i64, both (layers, nq, k)
    Units:  Euclidean, in the units of the input
    Notes:  exact; of equal distances the lower index comes first. From 4,096 points of 1,024 coordinates on compiled
            code looks through seeded random directions first, which hide a neighbour of a whole probe with a
            probability below 1e-7 (kernels/nearest_neighbors/contraction.py says what that buys)
    Errors: ShapeError, DataError as in check_neighbors
    """
    check_neighbors(queries, bank, params)
    params = _on_device(params, bank.device)
    # a GPU has memory for them, and would get as many launches more as there are layers
    if bank.device.type == "cpu" and len(bank) > 1 and bank.numel() * bank.element_size() > WHOLE_BYTES:
        own = queries is bank
        whole = room_for(len(bank), queries.shape[1], params.n_neighbors)
        for layer in range(len(bank)):
            at = slice(layer, layer + 1)
            asked = bank[at] if own else queries[at]
            out = (whole[0][at], whole[1][at])
            found = _find(asked, asked if own else bank[at], _of_layer(params, layer), memory_budget, out)
            for part, target in zip(found, out, strict=True):
                if part.data_ptr() != target.data_ptr():
                    target.copy_(part)
        return Neighbors(*whole)
    return _find(queries, bank, params, memory_budget)


@torch.no_grad()
def find_neighbors_under_each(
    queries: Float[Tensor, "layers nq d"],
    bank: Float[Tensor, "layers nb d"],
    params: Sequence[NeighborsParams],
    memory_budget: int = MEMORY_BUDGET,
) -> list[Neighbors]:
    """Give what find_neighbors gives for each of the parameters; narrow points on a CPU are compared once for all.

    Errors: as there
    """
    alike = len(params) > 1 and len({one.n_neighbors for one in params}) == 1
    if alike and queries.device.type == "cpu" and queries.shape[-1] <= DIRECT_WIDTH:
        for one in params:
            check_neighbors(queries, bank, one)
        own, others, frame = _framed(queries, bank)
        ids = [
            None if one.query_ids is None or one.bank_ids is None else (one.query_ids, one.bank_ids) for one in params
        ]
        found = nearest_neighbors_under_each(own, others, params[0].n_neighbors, ids, memory_budget)
        if found is not None:
            distances = found[0] if frame.plain else found[0].mul_(frame.scale)
            if _lost(queries, bank, distances, frame.scale) is None:
                return [Neighbors(*one) for one in zip(distances, found[1], strict=True)]
    return [find_neighbors(queries, bank, one, memory_budget) for one in params]


def _on_device(params: NeighborsParams, device: torch.device) -> NeighborsParams:
    if params.query_ids is None or params.bank_ids is None:
        return params
    return NeighborsParams(params.n_neighbors, to_device(params.query_ids, device), to_device(params.bank_ids, device))


def _of_layer(params: NeighborsParams, layer: int) -> NeighborsParams:
    """Give the parameters of one layer of those of all."""
    ids = [x if x is None or x.ndim == 1 else x[layer : layer + 1] for x in (params.query_ids, params.bank_ids)]
    return NeighborsParams(params.n_neighbors, *ids)


def _find(
    queries: Tensor,
    bank: Tensor,
    params: NeighborsParams,
    memory_budget: int,
    out: tuple[Tensor, Tensor] | None = None,
) -> Neighbors:
    """Find the neighbours of layers that are taken together, in `out` where compiled code finds them."""
    found, scale = _search(queries, bank, params, memory_budget, out)
    lost = _lost(queries, bank, found.distances, scale)
    if lost is not None:
        _look_again(queries, bank, params, found, lost, memory_budget)
    return found


def _lost(queries: Tensor, bank: Tensor, distances: Tensor, scale: Tensor) -> Bool[Tensor, "layers nq"] | None:
    """Mark the rows some of whose distances are so small that float32 may hold nothing of their squares; None: no row.

    Shapes: distances (*sets, layers, nq, k), scale (layers, 1, 1) of the frame in which float32 found them
    """
    # a GPU would have to wait to learn it: there such points are ties, 2^-63 of a layer's extent apart
    if bank.device.type != "cpu" or torch.float64 in (queries.dtype, bank.dtype):
        return None
    near = (distances < LEAST_HELD * scale).any(-1)
    if not bool(near.any()):
        return None
    # points without tiny coordinates that are not one lie farther apart than that
    tiny = any(
        bool(((X.abs() < LEAST_COORDINATE * scale) & (X != 0)).any())
        for X in ((bank,) if queries is bank else (bank, queries))
    )
    return near if tiny else None


def _look_again(
    queries: Tensor, bank: Tensor, params: NeighborsParams, found: Neighbors, lost: Tensor, memory_budget: int
) -> None:
    """Search some rows anew in float64, in place; distances that are equal once rounded to float32 are ties."""
    k = params.n_neighbors
    for layer, rows in _rows_by_layer(lost, max(1, memory_budget // (8 * bank.shape[1]))):
        block = torch.cdist(queries[layer, rows].double(), bank[layer].double(), compute_mode=DIRECT)
        own = _of_layer(params, layer)
        if own.query_ids is not None and own.bank_ids is not None:
            block.masked_fill_(own.query_ids.flatten()[rows, None] == own.bank_ids.flatten(), torch.inf)
        # the bits of a float64, rounded to the 24 that a float32 has, stand in the order of the numbers
        rounded = (block.view(torch.int64) + (1 << 28)) >> 29
        ranks = rounded.sort(dim=-1, stable=True).indices[:, :k]
        found.distances[layer, rows] = block.gather(-1, ranks).float()
        found.indices[layer, rows] = ranks


def _search(
    queries: Tensor,
    bank: Tensor,
    params: NeighborsParams,
    memory_budget: int,
    out: tuple[Tensor, Tensor] | None = None,
) -> tuple[Neighbors, Tensor]:
    """Find neighbours in the frame in which float32 is safe, and give its scale."""
    n_layers, n_queries, width = queries.shape
    n_bank, k = bank.shape[1], params.n_neighbors
    queries, bank, frame = _framed(queries, bank)
    scale, centre = frame.scale, frame.offset if frame.plain else frame.offset / frame.scale
    if queries.is_cuda and k <= MOST_NEIGHBORS:
        # no candidate is lost to rounding, so that no row is doubtful and nothing waits for the device
        distances, indices = nearest_neighbors_fused(queries, bank, k, params.query_ids, params.bank_ids)
        return Neighbors((distances * scale).float(), indices), scale
    with full_precision():
        native = nearest_neighbors_native(
            queries, bank, centre, k, params.query_ids, params.bank_ids, memory_budget, out
        )
    if native is not None:
        return Neighbors(native[0] if frame.plain else native[0].mul_(scale), native[1]), scale
    centred_queries, centred_bank = (queries - centre).float(), (bank - centre).float()
    distances = torch.empty(n_layers, n_queries, k, device=queries.device)
    indices = torch.empty(n_layers, n_queries, k, dtype=torch.int64, device=queries.device)
    n_candidates = min(k + SPARE, n_bank)
    # a gathered candidate costs more than a direct distance, so few points are compared in full; and on CUDA a second
    # look at doubtful rows would wait for the device
    direct = 4 * n_candidates >= n_bank or queries.is_cuda
    row_bytes = queries.element_size() * n_layers * max(n_bank, 1 if direct else n_candidates * width)
    rows = max(1, memory_budget // row_bytes)
    with full_precision():
        for start in range(0, n_queries, rows):
            tile = slice(start, min(start + rows, n_queries))
            mask = forbidden(params, tile.start, tile.stop)
            if direct:
                found = _search_full(queries[:, tile], bank, mask, k)
            else:
                proposed = _propose(centred_queries[:, tile], centred_bank, mask, n_candidates)
                found = _search_candidates(queries[:, tile], bank, mask, k, proposed, memory_budget)
            distances[:, tile], indices[:, tile] = (found[0] * scale).float(), found[1]
    return Neighbors(distances, indices), scale


def _framed(queries: Tensor, bank: Tensor) -> tuple[Tensor, Tensor, Frame]:
    """Bring queries and bank to a size about 1, where they need it; their mean is left in them."""
    own = queries is bank
    bank = _wide(bank)
    queries = bank if own else _wide(queries)
    frame = spared_scaling(bank, None if own else queries)
    if not frame.plain:
        # the matmul needs centred points; the direct differences must not be centred, which would round them
        bank = bank / frame.scale
        queries = bank if own else queries / frame.scale
    return queries, bank, frame


def _wide(X: Tensor) -> Tensor:
    return X if X.dtype == torch.float64 else X.float()


def _search_full(queries: Tensor, bank: Tensor, mask: Tensor | None, k: int) -> tuple[Tensor, Tensor]:
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
    for layer, row in _rows_by_layer(doubtful, max(1, memory_budget // (bank.element_size() * bank.shape[1]))):
        layer_mask = None if mask is None else (mask if mask.ndim == 2 else mask[layer])[row]
        distances[layer, row], indices[layer, row] = _search_full(queries[layer, row], bank[layer], layer_mask, k)
    return distances, indices


def _gather_points(bank: Tensor, indices: Tensor) -> Tensor:
    n_layers, n_bank, width = bank.shape
    start = torch.arange(n_layers, device=bank.device)[:, None, None] * n_bank
    return bank.reshape(-1, width).index_select(0, (indices + start).flatten()).view(*indices.shape, width)


def _rows_by_layer(doubtful: Tensor, rows: int) -> Iterator[tuple[int, Tensor]]:
    """Yield (layer, rows) of the doubtful queries in blocks within the memory budget; one wait on the device."""
    if not bool(doubtful.any()):
        return
    for layer in doubtful.any(-1).nonzero().flatten().tolist():
        for row in doubtful[layer].nonzero().flatten().split(rows):
            yield layer, row
