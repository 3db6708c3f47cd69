"""Neighbours among points of many coordinates, a layer at a time: matmuls propose, cpu.cpp settles."""

import ctypes
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from fastcluster_lm.kernels.native import address, thread_count
from fastcluster_lm.kernels.nearest_neighbors.contraction import contract, pays
from fastcluster_lm.kernels.rounding import SPARE, matmul_rounding, row_squares

# a block of values fits a processor's cache; and points beyond its candidates that a row may look at in the first look,
# as a share of the bank: more cost as much as the matmul that settles the row
BLOCK_BYTES, LOOKED_AT = 8 * 2**20, 1 / 16
# one row of so many is tried first; where fewer than this share of them is settled, all others are settled at once
TRIED, WORTH = 16, 0.3


class Layer(NamedTuple):
    """One layer's points, raw and centred, and its results.

    Shapes: queries (nq, d), bank (nb, d); query_ids (nq,), bank_ids (nb,) or None; distances, indices (nq, k)
    """

    queries: Float[Tensor, "nq d"]
    bank: Float[Tensor, "nb d"]
    centred_queries: Float[Tensor, "nq d"]
    centred_bank: Float[Tensor, "nb d"]
    query_ids: Int[Tensor, " nq"] | None
    bank_ids: Int[Tensor, " nb"] | None
    distances: Float[Tensor, "nq k"]
    indices: Int[Tensor, "nq k"]


def search_layer(native: ctypes.CDLL, layer: Layer, memory_budget: int) -> None:
    """Write each query's nearest bank points into the layer's results, nearest first.

    Units:  memory_budget in bytes, for a block of values
    """
    n_bank, width = layer.bank.shape
    n_queries, k = layer.distances.shape
    query_sq, bank_sq = row_squares(layer.centred_queries), row_squares(layer.centred_bank)
    # what matmuls may have rounded off the squared distance of a query and any point
    slack = matmul_rounding(width) * (query_sq + bank_sq.amax())
    settled = torch.zeros(n_queries, dtype=torch.uint8)
    tile = max(1, min(memory_budget, BLOCK_BYTES) // (4 * n_bank))
    numbers = [ctypes.c_int64(size) for size in (n_queries, n_bank, width, k, min(k + SPARE, n_bank))]
    ids = [None if x is None else address(x, torch.int64) for x in (layer.query_ids, layer.bank_ids)]
    points = [address(layer.queries, torch.float32), address(layer.bank, torch.float32)]
    results = [address(layer.distances, torch.float32), address(layer.indices, torch.int64)]
    threads = ctypes.c_int32(thread_count())

    def look(rows: Tensor, queries: Tensor, bank: Tensor, shift: Tensor, squares: Tensor, most: int) -> None:
        for which in rows.split(tile):
            block = torch.addmm(squares, queries[which], bank.mT, alpha=-2)  # (rows, nb)
            native.neighbors_bounded(
                address(block, torch.float32), address(which, torch.int64), ctypes.c_int64(len(which)),
                address(shift, torch.float32), address(slack, torch.float32), *points, *ids, *numbers,
                ctypes.c_int64(most), address(settled, torch.uint8), *results, threads,
            )  # fmt: skip

    rows = torch.arange(n_queries)
    if pays(n_queries, n_bank, width, k):
        reduced = contract(layer.centred_queries, layer.centred_bank)
        few = (reduced.queries, reduced.bank, row_squares(reduced.queries), row_squares(reduced.bank))
        tried, most = reduced.order[::TRIED].contiguous(), int(LOOKED_AT * n_bank)
        look(tried, *few, most)
        rows = reduced.order[settled[reduced.order] == 0]
        if float(settled[tried].float().mean()) >= WORTH:
            look(rows, *few, most)
            rows = rows[settled[rows] == 0]
    look(rows, layer.centred_queries, layer.centred_bank, query_sq, bank_sq, n_bank)
