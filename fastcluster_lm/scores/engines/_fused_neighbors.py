"""Exact nearest neighbours over all layers at once, in a frame in which float32 is safe; ties go to the lower index."""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from fastcluster_lm.kernels.nearest_neighbors import (
    DIRECT_WIDTH,
    Search,
    nearest_neighbors,
    nearest_neighbors_under_each,
    room_for,
)
from fastcluster_lm.kernels.nearest_neighbors.tiled import DIRECT, rows_by_layer
from fastcluster_lm.kernels.transfer import to_device
from fastcluster_lm.scores.batches import WHOLE_BYTES, Frame, spared_scaling
from fastcluster_lm.scores.engines.checks import check_neighbors
from fastcluster_lm.scores.engines.params import Neighbors, NeighborsParams
from fastcluster_lm.scores.precision import full_precision

# most bytes of one block of distances or of gathered candidates, where the caller names none
MEMORY_BUDGET = 256 * 2**20
# in a frame's units: distances of at least the first have squares that float32 holds in full, and so have those of
# unlike points whose coordinates are 0 or at least the second
LEAST_HELD, LEAST_COORDINATE = 2.0**-45, 2.0**-39


@torch.no_grad()
def find_neighbors(
    queries: Float[Tensor, "layers nq d"],
    bank: Float[Tensor, "layers nb d"],
    params: NeighborsParams,
    memory_budget: int = MEMORY_BUDGET,
    *,
    checked: bool = False,
) -> Neighbors:
    """Give each query its nearest bank points, nearest first.

    Shapes: queries (layers, nq, d), bank (layers, nb, d) -> distances f32, indices i64, both (layers, nq, k)
    Units:  Euclidean, in the units of the input
    Notes:  exact; of equal distances the lower index comes first. From 4,096 points of 1,024 coordinates on compiled
            code looks through seeded random directions first, which hide a neighbour of a whole probe with a
            probability below 1e-7 (kernels/nearest_neighbors/contraction.py says what that buys)
    Errors: ShapeError, DataError as in check_neighbors
    """
    check_neighbors(queries, bank, params, checked=checked)
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
            check_neighbors(queries, bank, one, checked=True)
        own, others, frame = _framed(queries, bank)
        search = _search_in(frame, params[0], memory_budget)
        with full_precision():
            distances, indices = nearest_neighbors_under_each(own, others, search, [_ids(one) for one in params])
        if _lost(queries, bank, distances, frame.scale) is None:
            return [Neighbors(*one) for one in zip(distances, indices, strict=True)]
    return [find_neighbors(queries, bank, one, memory_budget, checked=True) for one in params]


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
    for layer, rows in rows_by_layer(lost, max(1, memory_budget // (8 * bank.shape[1]))):
        block = torch.cdist(queries[layer, rows].double(), bank[layer].double(), compute_mode=DIRECT)
        own = _of_layer(params, layer)
        if own.query_ids is not None and own.bank_ids is not None:
            block.masked_fill_(own.query_ids.flatten()[rows, None] == own.bank_ids.flatten(), torch.inf)
        # the bits of a float64, rounded to the 24 that a float32 has (halves to the even one, as float() does), stand
        # in the order of the numbers
        bits = block.view(torch.int64)
        rounded = (bits + ((1 << 28) - 1) + ((bits >> 29) & 1)) >> 29
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
    queries, bank, frame = _framed(queries, bank)
    with full_precision():
        found = nearest_neighbors(queries, bank, _search_in(frame, params, memory_budget), out)
    return Neighbors(*found), frame.scale


def _search_in(frame: Frame, params: NeighborsParams, memory_budget: int) -> Search:
    centre = frame.offset if frame.plain else frame.offset / frame.scale
    return Search(params.n_neighbors, _ids(params), centre, None if frame.plain else frame.scale, memory_budget)


def _ids(params: NeighborsParams) -> tuple[Tensor, Tensor] | None:
    return None if params.query_ids is None or params.bank_ids is None else (params.query_ids, params.bank_ids)


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
