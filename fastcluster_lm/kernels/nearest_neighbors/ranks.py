"""How many points are nearer to each point than others are: C++ for narrow points on a CPU, else a matmul."""

import ctypes

import torch
from jaxtyping import Float, Int
from torch import Tensor

from fastcluster_lm.errors import ShapeError
from fastcluster_lm.kernels.native import address, check_codes, library, thread_count
from fastcluster_lm.kernels.nearest_neighbors.op import DIRECT_WIDTH, SOURCE, VECTOR, most_paired


def count_nearer(
    X: Float[Tensor, "layers n d"], indices: Int[Tensor, "layers n k"], memory_budget: int
) -> Int[Tensor, "layers n k"]:
    """Count the points that are nearer to each point than those that its indices name; it is not counted itself.

    Shapes: X (layers, n, d) f32, indices (layers, n, k), never the point's own -> counts i64 (layers, n, k)
    Units:  memory_budget in bytes, for distances held at once
    Notes:  narrow points are compared by direct differences; wide ones, and all where no compiled code is, by a matmul,
            at the precision that the caller has set, whose rounding may count an equal point as nearer
    Errors: ShapeError if the indices do not fit; DataError for one that names no point
    """
    if indices.shape[:-1] != X.shape[:-1]:
        raise ShapeError(f"indices have shape {tuple(indices.shape)}, points {tuple(X.shape)}; layers and n must match")
    n_layers, n, width = X.shape
    # a GPU has launches to spare for ranks, not for a look at indices that its own search gave
    if indices.is_cpu:
        check_codes(indices, n, "indices")
    narrow = X.device.type == "cpu" and X.dtype == torch.float32 and width <= DIRECT_WIDTH
    native = library(SOURCE) if narrow else None
    if native is None:
        return _count_by_matmul(X, indices, max(1, memory_budget // 4 // (n_layers * n)))
    X, indices = X.contiguous(), indices.long().contiguous()
    padded = -(-n // VECTOR) * VECTOR
    columns = torch.empty(n_layers, width, padded, dtype=torch.float32)
    counts = torch.empty(indices.shape, dtype=torch.int64)
    sizes = [ctypes.c_int64(size) for size in (n_layers, n, padded, width, indices.shape[-1])]
    points = (address(X, torch.float32), address(columns, torch.float32), address(indices, torch.int64))
    out = (address(counts, torch.int64), ctypes.c_int32(thread_count()))
    native.count_nearer(*points, *sizes, ctypes.c_int64(most_paired(memory_budget)), *out)
    return counts


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


def _count_by_matmul(X: Tensor, others: Tensor, rows: int) -> Int[Tensor, "layers n k"]:
    """Count the points nearer to each point than some others, a block of rows at a time."""
    n = X.shape[1]
    sq = X.square().sum(-1)
    counts = torch.empty_like(others)
    for start in range(0, n, rows):
        tile = slice(start, min(start + rows, n))
        block = torch.baddbmm(sq[:, None, :], X[:, tile], X.mT, alpha=-2)  # (layers, rows, n), less |x|^2
        own = torch.arange(tile.start, tile.stop, device=X.device)
        block[:, own - tile.start, own] = torch.inf
        counts[:, tile] = count_below(block, block.gather(2, others[:, tile]))
    return counts
