"""Dispatch of nearest_neighbors: C++ for float32 on a CPU; elsewhere torch code, the caller's."""

import ctypes
import math
from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor

from fastcluster_lm.kernels.native import address, library, thread_count
from fastcluster_lm.kernels.nearest_neighbors.wide import Layer, search_layer
from fastcluster_lm.kernels.pages import room

SOURCE = Path(__file__).with_name("cpu.cpp")
VECTOR = 8
# up to this width direct differences with all points cost less than a matmul and a second look at its candidates
DIRECT_WIDTH = 64
# so many points, padded, may be compared in pairs: a matrix of 4 MiB for each thread
MOST_PAIRED = 1024


def nearest_neighbors_native(
    queries: Float[Tensor, "layers nq d"],
    bank: Float[Tensor, "layers nb d"],
    offset: Float[Tensor, "layers 1 d"],
    k: int,
    query_ids: Int[Tensor, "*layers nq"] | None,
    bank_ids: Int[Tensor, "*layers nb"] | None,
    memory_budget: int,
    out: tuple[Tensor, Tensor] | None = None,
) -> tuple[Float[Tensor, "layers nq k"], Int[Tensor, "layers nq k"]] | None:
    """Give each query its nearest bank points, nearest first; None where compiled code cannot.

    Shapes: queries (layers, nq, d), bank (layers, nb, d) -> distances f32, indices i64, both (layers, nq, k)
            offset (layers, 1, d): what the matmul's points are centred by; ids as in NeighborsParams; out: where
            the results are written, as room_for gives it
    Units:  Euclidean; memory_budget in bytes, for the block of distances
    """
    if queries.device.type != "cpu" or queries.dtype != torch.float32:
        return None
    native = library(SOURCE)
    if native is None:
        return None
    own_bank = queries is bank
    bank = bank.contiguous()
    queries = bank if own_bank else queries.contiguous()
    n_layers, n_queries, width = queries.shape
    distances, indices = out or room_for(n_layers, n_queries, k)
    ids = None if query_ids is None or bank_ids is None else _small_ids(query_ids, bank_ids)
    if width <= DIRECT_WIDTH:
        _search_directly(native, queries, bank, [ids], memory_budget, distances[None], indices[None])
        return distances, indices
    own, others = (None, None) if ids is None else ids
    for at in range(n_layers):
        own_ids, other_ids = (None if x is None else x[at if len(x) > 1 else 0] for x in (own, others))
        points = bank[at]
        asked = points if own_bank else queries[at]
        layer = Layer(asked, points, offset[at, 0], own_ids, other_ids, distances[at], indices[at])
        search_layer(native, layer, memory_budget)
    return distances, indices


def nearest_neighbors_under_each(
    queries: Float[Tensor, "layers nq d"],
    bank: Float[Tensor, "layers nb d"],
    k: int,
    ids: Sequence[tuple[Tensor, Tensor] | None],
    memory_budget: int,
) -> tuple[Float[Tensor, "sets layers nq k"], Int[Tensor, "sets layers nq k"]] | None:
    """Give each query its nearest bank points under each set of identities; distances are computed once for all.

    ids: of the queries (layers, nq) or (nq,) and of the bank (layers, nb) or (nb,); None: every point is admissible
    Shapes: queries (layers, nq, d), bank (layers, nb, d) -> distances f32, indices i64, both (sets, layers, nq, k);
            None where compiled code cannot, and for wide points, whose rows are bounded under one set at a time
    Units:  memory_budget in bytes, for the distances of all pairs
    """
    if queries.device.type != "cpu" or queries.dtype != torch.float32 or queries.shape[-1] > DIRECT_WIDTH:
        return None
    native = library(SOURCE)
    if native is None:
        return None
    n_layers, n_queries, _ = queries.shape
    shape = (len(ids), n_layers, n_queries, k)
    distances, indices = _filled(*shape)
    small = [None if pair is None else _small_ids(*pair) for pair in ids]
    _search_directly(native, queries.contiguous(), bank.contiguous(), small, memory_budget, distances, indices)
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
