"""Dispatch of nearest_neighbors and ranks: C++ for float32 on a CPU; elsewhere torch code, the caller's or this one."""

import ctypes
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor

from fastcluster_lm.errors import ShapeError
from fastcluster_lm.kernels.native import address, library, thread_count
from fastcluster_lm.kernels.nearest_neighbors.wide import Layer, search_layer
from fastcluster_lm.kernels.pages import room

SOURCE = Path(__file__).with_name("cpu.cpp")
VECTOR = 8
# up to this width direct differences with all points cost less than a matmul and a second look at its candidates
DIRECT_WIDTH = 64


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
    n_bank = bank.shape[1]
    distances, indices = out or room_for(n_layers, n_queries, k)
    own = others = None
    if query_ids is not None and bank_ids is not None:
        rows = 1 if query_ids.ndim == bank_ids.ndim == 1 else n_layers
        # kept by name until the call is over
        own = query_ids.expand(rows, n_queries).long().contiguous()
        others = bank_ids.expand(rows, n_bank).long().contiguous()
    if width <= DIRECT_WIDTH:
        padded = -(-n_bank // VECTOR) * VECTOR
        columns = torch.zeros(n_layers, width, padded, dtype=torch.float32)
        columns[..., :n_bank] = bank.mT
        sizes = [ctypes.c_int64(size) for size in (n_layers, n_queries, n_bank, padded, width, k)]
        ids = [None if x is None else address(x, torch.int64) for x in (own, others)]
        native.neighbors_direct(
            address(queries, torch.float32), address(columns, torch.float32), *ids,
            ctypes.c_int64(1 if own is None else len(own)), *sizes,
            address(distances, torch.float32), address(indices, torch.int64), ctypes.c_int32(thread_count()),
        )  # fmt: skip
        return distances, indices
    for at in range(n_layers):
        own_ids, other_ids = (None if x is None else x[at % len(x)] for x in (own, others))
        points = bank[at]
        asked = points if own_bank else queries[at]
        layer = Layer(asked, points, offset[at, 0], own_ids, other_ids, distances[at], indices[at])
        search_layer(native, layer, memory_budget)
    return distances, indices


def room_for(n_layers: int, n_queries: int, k: int) -> tuple[Tensor, Tensor]:
    """Give room for distances and indices."""
    return room(n_layers, n_queries, k, dtype=torch.float32), room(n_layers, n_queries, k, dtype=torch.int64)


def count_below(values: Float[Tensor, "*rows n"], thresholds: Float[Tensor, "*rows k"]) -> Int[Tensor, "*rows k"]:
    """Count the values of each row that are below each of its thresholds: ranks, where the values are distances.

    Shapes: values f32 (..., n), thresholds f32 (..., k) -> counts i64 (..., k)
    Errors: ShapeError if the rows differ
    """
    if values.shape[:-1] != thresholds.shape[:-1]:
        raise ShapeError(f"values have shape {tuple(values.shape)}, thresholds {tuple(thresholds.shape)}; rows differ")
    native = library(SOURCE) if values.device.type == "cpu" and values.dtype == torch.float32 else None
    if native is None:
        places = [(values < threshold[..., None]).sum(-1) for threshold in thresholds.unbind(-1)]
        return torch.stack(places, -1)
    values, thresholds = values.contiguous(), thresholds.float().contiguous()
    counts = torch.empty(thresholds.shape, dtype=torch.int64)
    n, k = values.shape[-1], thresholds.shape[-1]
    sizes = [ctypes.c_int64(size) for size in (counts.numel() // max(k, 1), n, k)]
    out = (address(counts, torch.int64), ctypes.c_int32(thread_count()))
    native.count_below(address(values, torch.float32), address(thresholds, torch.float32), *sizes, *out)
    return counts
