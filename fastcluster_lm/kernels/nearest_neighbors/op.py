"""Dispatch of nearest_neighbors: C++ for float32 on a CPU, Triton on CUDA, tiles in torch elsewhere."""

import ctypes
import math
from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor

from fastcluster_lm.kernels.native import address, library, thread_count
from fastcluster_lm.kernels.nearest_neighbors.cuda import MOST_NEIGHBORS, nearest_neighbors_on_cuda
from fastcluster_lm.kernels.nearest_neighbors.search import Ids, Search
from fastcluster_lm.kernels.nearest_neighbors.tiled import nearest_neighbors_in_tiles
from fastcluster_lm.kernels.nearest_neighbors.wide import Layer, search_layer
from fastcluster_lm.kernels.pages import room

Found = tuple[Float[Tensor, "layers nq k"], Int[Tensor, "layers nq k"]]

SOURCE = Path(__file__).with_name("cpu.cpp")
VECTOR = 8
# up to this width direct differences with all points cost less than a matmul and a second look at its candidates
DIRECT_WIDTH = 64
# so many points, padded, may be compared in pairs: a matrix of 4 MiB for each thread
MOST_PAIRED = 1024


def nearest_neighbors(
    queries: Float[Tensor, "layers nq d"],
    bank: Float[Tensor, "layers nb d"],
    search: Search,
    out: Found | None = None,
) -> Found:
    """Give each query its nearest bank points, nearest first; of equal distances the lower index comes first.

    Shapes: queries (layers, nq, d), bank (layers, nb, d) -> distances f32, indices i64, both (layers, nq, k)
    Notes:  matmuls take the precision that the caller has set, which must be float32's own; out, as room_for gives it:
            where compiled code writes
    """
    if queries.is_cuda and search.k <= MOST_NEIGHBORS:
        # no candidate is lost to rounding, so that no row is doubtful and nothing waits for the device
        distances, indices = nearest_neighbors_on_cuda(queries, bank, search.k, *(search.ids or (None, None)))
    elif (native := _compiled(queries)) is not None:
        distances, indices = _search_compiled(native, queries, bank, search, out)
    else:
        return nearest_neighbors_in_tiles(queries, bank, search)
    return distances if search.scale is None else distances.mul_(search.scale), indices


def nearest_neighbors_under_each(
    queries: Float[Tensor, "layers nq d"],
    bank: Float[Tensor, "layers nb d"],
    search: Search,
    ids: Sequence[Ids | None],
) -> tuple[Float[Tensor, "sets layers nq k"], Int[Tensor, "sets layers nq k"]]:
    """Give each query its nearest bank points under each set of identities, in place of the search's own.

    Shapes: queries (layers, nq, d), bank (layers, nb, d) -> distances f32, indices i64, both (sets, layers, nq, k)
    Notes:  compiled code computes distances of narrow points once for all; rows of wide points are bounded under one
            set at a time
    """
    native = _compiled(queries)
    if native is None or queries.shape[-1] > DIRECT_WIDTH:
        found = [nearest_neighbors(queries, bank, search._replace(ids=own)) for own in ids]
        return torch.stack([distances for distances, _ in found]), torch.stack([indices for _, indices in found])
    n_layers, n_queries, _ = queries.shape
    distances, indices = _filled(len(ids), n_layers, n_queries, search.k)
    small = [None if pair is None else _small_ids(*pair) for pair in ids]
    own, others = queries.contiguous(), bank.contiguous()
    _search_directly(native, own, others, small, search.memory_budget, distances, indices)
    return distances if search.scale is None else distances.mul_(search.scale), indices


def _compiled(queries: Tensor) -> ctypes.CDLL | None:
    return library(SOURCE) if queries.device.type == "cpu" and queries.dtype == torch.float32 else None


def _search_compiled(native: ctypes.CDLL, queries: Tensor, bank: Tensor, search: Search, out: Found | None) -> Found:
    """Search by C++, wide points a layer at a time."""
    own_bank = queries is bank
    bank = bank.contiguous()
    queries = bank if own_bank else queries.contiguous()
    n_layers, n_queries, width = queries.shape
    distances, indices = out or room_for(n_layers, n_queries, search.k)
    ids = None if search.ids is None else _small_ids(*search.ids)
    if width <= DIRECT_WIDTH:
        _search_directly(native, queries, bank, [ids], search.memory_budget, distances[None], indices[None])
        return distances, indices
    own, others = (None, None) if ids is None else ids
    for at in range(n_layers):
        own_ids, other_ids = (None if x is None else x[at if len(x) > 1 else 0] for x in (own, others))
        points = bank[at]
        asked = points if own_bank else queries[at]
        layer = Layer(asked, points, search.centre[at, 0], own_ids, other_ids, distances[at], indices[at])
        search_layer(native, layer, search.memory_budget)
    return distances, indices


def _search_directly(
    native: ctypes.CDLL,
    queries: Tensor,
    bank: Tensor,
    ids: Sequence[tuple[Tensor, Tensor] | None],
    memory_budget: int,
    distances: Tensor,
    indices: Tensor,
) -> None:
    """Compare narrow points with the whole bank; results (sets, layers, nq, k)."""
    n_layers, n_queries, width = queries.shape
    n_bank = bank.shape[1]
    padded = -(-n_bank // VECTOR) * VECTOR
    columns = torch.empty(n_layers, width, padded, dtype=torch.float32)
    places: list[ctypes.c_void_p | None] = [None, None]
    rows = 1
    sides: Sequence[Tensor] = ()
    if len(ids) == 1 and ids[0] is not None:
        rows = max(part.shape[0] for part in ids[0])
        sides = [part.expand(rows, -1).contiguous() for part in ids[0]]
    elif any(pair is not None for pair in ids):
        # under no identities no query has that of a point
        free = (torch.zeros(1, n_queries, dtype=torch.int32), torch.ones(1, n_bank, dtype=torch.int32))
        pairs = [free if pair is None else pair for pair in ids]
        rows = max(part.shape[0] for pair in pairs for part in pair)
        sides = [torch.stack([pair[side].expand(rows, -1) for pair in pairs]) for side in (0, 1)]
    if sides:
        places = [address(side, torch.int32) for side in sides]
    native.neighbors_direct(
        *(address(part, torch.float32) for part in (queries, bank, columns)), *places,
        *(ctypes.c_int64(size) for size in (len(ids), rows, n_layers, n_queries, n_bank, padded, width)),
        ctypes.c_int64(distances.shape[-1]), ctypes.c_int64(most_paired(memory_budget)),
        address(distances, torch.float32), address(indices, torch.int64), ctypes.c_int32(thread_count()),
    )  # fmt: skip


def most_paired(memory_budget: int) -> int:
    """Give how many points may be compared in pairs, so that the matrices of all threads stay within the budget."""
    return min(MOST_PAIRED, math.isqrt(memory_budget // (4 * thread_count())))


def _small_ids(query_ids: Tensor, bank_ids: Tensor) -> tuple[Tensor, Tensor]:
    """Give identities as 32-bit numbers that are equal where they are, (layers, n) each, or (1, n) for all layers."""
    both = [ids if ids.ndim == 2 else ids[None] for ids in (query_ids, bank_ids)]
    if query_ids is bank_ids and _fits(query_ids):
        own = both[0].int().contiguous()
        return own, own
    if not all(map(_fits, both)):
        codes = torch.cat([ids.flatten() for ids in both]).unique(return_inverse=True)[1]
        both = [
            part.view(ids.shape) for part, ids in zip(codes.split([ids.numel() for ids in both]), both, strict=True)
        ]
    own, others = (ids.int().contiguous() for ids in both)
    return own, others


def _fits(ids: Tensor) -> bool:
    kept = torch.iinfo(torch.int32)
    return all(kept.min <= int(value) <= kept.max for value in ids.aminmax()) if ids.numel() else True


def room_for(n_layers: int, n_queries: int, k: int) -> tuple[Tensor, Tensor]:
    """Give room for distances and indices, each slot filled: none keeps what lay there, whatever the points hold."""
    return _filled(n_layers, n_queries, k)


def _filled(*shape: int) -> tuple[Tensor, Tensor]:
    # where no distance is a number below infinity, the search writes nothing
    return room(*shape, dtype=torch.float32).fill_(torch.inf), room(*shape, dtype=torch.int64).zero_()
